"""Models whose layers have shapes of their own: for transformers (``model``) and for vLLM (``engine``, ``plugin``).

A ragged checkpoint is the plain one with another ``model_type`` and up to three more lists in config.json, one entry per layer:
``layer_intermediate_sizes``, ``layer_attention_heads``, ``layer_key_value_heads``. The names of the weights stay.
"""
