"""What config.json says of a model whose layers have shapes of their own: written by the offline half, read in the engine too."""

from __future__ import annotations

from typing import Any

RAGGED_TYPE, RAGGED_ARCHITECTURE = "understudy_ragged_", "UnderstudyRagged"
"""What stands before a family's names."""

LISTS = {
    "layer_intermediate_sizes": "intermediate_size",
    "layer_attention_heads": "num_attention_heads",
    "layer_key_value_heads": "num_key_value_heads",
}
"""Lists with one entry per layer, and the key of a plain config that each stands for."""


def is_ragged(values: dict[str, Any]) -> bool:
    """Whether a config (as a mapping) is of such a model."""
    return str(values.get("model_type")).startswith(RAGGED_TYPE)


def widest(values: dict[str, Any]) -> dict[str, Any]:
    """The config of the plain model that a ragged one is when all its layers are filled up with zeros to the widest's shape.

    Filled up behind its own channels and heads, a layer gives what it gave: what is zero goes through no FFN and no attention. That
    needs as many query heads for every key-value head in all layers.

    Raises:
        ValueError: they differ.
    """
    layers = values["num_hidden_layers"]
    heads = values.get("layer_attention_heads") or [values["num_attention_heads"]] * layers
    groups = values.get("layer_key_value_heads") or [values["num_key_value_heads"]] * layers
    if any(h * groups[0] != g * heads[0] for h, g in zip(heads, groups, strict=True)):
        raise ValueError("its layers differ in how many query heads read a key-value head")
    size = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    plain = {key: value for key, value in values.items() if key not in LISTS}
    most = {key: max(values[name]) for name, key in LISTS.items() if values.get(name)}
    family = str(values["model_type"]).removeprefix(RAGGED_TYPE)
    architectures = [str(name).removeprefix(RAGGED_ARCHITECTURE) for name in values.get("architectures") or ()]
    return {**plain, **most, "model_type": family, "architectures": architectures, "head_dim": size}
