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


def num_groups(values: dict[str, Any]) -> int:
    """Key-value heads of a plain layer; old configs do not have the key, where it is the query heads' number."""
    return int(values.get("num_key_value_heads") or values["num_attention_heads"])


def head_dim(values: dict[str, Any]) -> int:
    """Width of a head."""
    return int(values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])


def shapes(values: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(FFN channels, query heads, key-value heads) of each layer.

    Raises:
        ValueError: a list without one entry per layer.
    """
    count = values["num_hidden_layers"]
    plain = {**values, "num_key_value_heads": num_groups(values)}
    rows = [values.get(name) or [plain[key]] * count for name, key in LISTS.items()]
    if any(len(row) != count for row in rows):
        raise ValueError(f"{', '.join(LISTS)}: one entry for each of {count} layers is needed")
    return list(zip(*rows, strict=True))


def filled_up(values: dict[str, Any]) -> dict[str, Any]:
    """The config of the plain model that a ragged one is when its layers are filled up with zeros to one shape.

    That is the widest FFN, and the heads of the model that it was made from. Filled up behind its own channels and heads, a layer
    gives what it gave: zeros go through no FFN and no attention, where a key-value head has as many query heads everywhere.

    Raises:
        ValueError: it has not, or a layer has more heads than the model that it was made from.
    """
    rows, heads, groups = shapes(values), values["num_attention_heads"], num_groups(values)
    if any(own_heads * groups != own_groups * heads or own_heads > heads for _, own_heads, own_groups in rows):
        raise ValueError(
            f"the heads of its layers are not whole groups of {heads // groups} query heads, {groups} at most"
        )
    return {
        **{key: value for key, value in values.items() if key not in LISTS},
        "model_type": str(values["model_type"]).removeprefix(RAGGED_TYPE),
        "architectures": [str(name).removeprefix(RAGGED_ARCHITECTURE) for name in values.get("architectures") or ()],
        "intermediate_size": max(width for width, _, _ in rows),
        "num_key_value_heads": groups,
        "head_dim": head_dim(values),
    }


def zeros(values: dict[str, Any]) -> int:
    """With how many weights a ragged model is filled up (``filled_up``), biases aside."""
    plain, hidden = filled_up(values), values["hidden_size"]
    size, heads, groups = plain["head_dim"], plain["num_attention_heads"], plain["num_key_value_heads"]
    return sum(
        hidden * (3 * (plain["intermediate_size"] - width) + 2 * size * (heads - own_heads + groups - own_groups))
        for width, own_heads, own_groups in shapes(values)
    )
