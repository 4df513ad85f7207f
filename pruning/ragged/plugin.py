"""A vLLM plugin that makes the engine know ragged models, in every one of its processes, without ``trust_remote_code``.

vLLM loads it through the entry-point group ``vllm.general_plugins`` before it reads a model's config.
"""

from __future__ import annotations

from pruning.families import FAMILIES, ragged_family


def register() -> None:
    """Entry point: names the model class for each ragged architecture; vLLM imports it when such a model is loaded."""
    from vllm import ModelRegistry

    from pruning.ragged import config

    config.register()
    for family in FAMILIES.values():
        ModelRegistry.register_model(ragged_family(family).architecture, "pruning.ragged.engine:RaggedForCausalLM")
