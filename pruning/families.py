"""The one place that knows how model families are built: names of parts, per-layer config keys, biases.

To add a family: one entry in ``FAMILIES`` and one line in tests/unit/pruning/pico.py; the contract suite does the rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stages.errors import InputError
from stages.ragged import RAGGED_ARCHITECTURE, RAGGED_TYPE


@dataclass(frozen=True)
class Family:
    """A decoder-only architecture as transformers names it.

    A bias given as True or False is fixed by the architecture; a string names the config key that decides it.
    """

    architecture: str
    model_type: str
    layers: str = "model.layers"
    embeddings: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    query_key_norm: bool = False
    ragged: bool = False
    """Whether each layer has a shape of its own (``pruning.ragged``)."""
    derived_head_dim: bool = False
    """Whether engines compute head_dim as hidden_size / heads, whatever config.json says."""

    def layers_of(self, model: Any) -> Any:
        """The model's list of decoder layers (an ``nn.ModuleList``)."""
        return model.get_submodule(self.layers)

    def head_of(self, model: Any) -> Any:
        """The layer that turns hidden states into logits."""
        return model.get_submodule(self.head)

    def rename(self, name: str, kept_layers: Sequence[int]) -> str | None:
        """A weight's name after only ``kept_layers`` stay, or None when it goes with its layer."""
        match = re.match(re.escape(self.layers) + r"\.(\d+)\.", name)
        if match is None:
            return name
        layer = int(match.group(1))
        if layer not in kept_layers:
            return None
        return f"{self.layers}.{list(kept_layers).index(layer)}.{name[match.end() :]}"


FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        Family(
            "LlamaForCausalLM", "llama", qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"
        ),
        Family("MistralForCausalLM", "mistral"),
        Family("MinistralForCausalLM", "ministral"),  # what transformers makes of a Mistral with layer_types
        Family("Qwen2ForCausalLM", "qwen2", qkv_bias=True, derived_head_dim=True),
        Family(
            "Qwen3ForCausalLM", "qwen3", qkv_bias="attention_bias", output_bias="attention_bias", query_key_norm=True
        ),
    )
}


def ragged_family(family: Family) -> Family:
    """The same family with layers of different shapes."""
    architecture, model_type = RAGGED_ARCHITECTURE + family.architecture, RAGGED_TYPE + family.model_type
    return replace(family, architecture=architecture, model_type=model_type, ragged=True)


_RAGGED = [ragged_family(family) for family in FAMILIES.values()]
_BY_NAME = {family.architecture: family for family in (*FAMILIES.values(), *_RAGGED)}
_BY_TYPE = {family.model_type: family for family in _BY_NAME.values()}


def family_of(config: Any, source: str = "target") -> Family:
    """The family of a config (a mapping as in config.json, or a transformers config).

    Raises:
        InputError: an unknown architecture, with the known ones; a form of weights that surgery cannot cut.
    """
    values = config if isinstance(config, dict) else config.to_dict()
    named = (values.get("architectures") or [None])[0]
    family = _BY_NAME.get(named) if named else _BY_TYPE.get(values.get("model_type", ""))
    if family is None:
        name = named or values.get("model_type") or "none given"
        raise InputError(f"{source}: unknown architecture {name}; known are {', '.join(FAMILIES)}")
    if values.get("quantization_config"):
        raise InputError(f"{source}: quantized weights cannot be pruned; give the checkpoint they were quantized from")
    if values.get("per_layer_config"):
        raise InputError(
            f"{source}: layers of different shapes (per_layer_config) cannot be pruned; give a uniform target"
        )
    return family


def cut_config(values: dict[str, Any], kept_layers: Sequence[int]) -> dict[str, Any]:
    """The config (as a mapping) of the model that keeps only ``kept_layers``, ascending.

    Every top-level list whose key names layers (``layer_types``, …) must have one entry per layer and is cut with them.
    ``max_window_layers`` counts the layers before the first with a sliding window, so it becomes the count among the
    kept; where it contradicts ``layer_types`` the list decides, in transformers as here.
    """
    num_layers = values["num_hidden_layers"]
    cut = {**values, "num_hidden_layers": len(kept_layers)}
    for key, value in values.items():
        if "layer" not in key or not isinstance(value, list | tuple):
            continue
        if len(value) != num_layers:
            raise InputError(
                f"config key {key}: {len(value)} entries for {num_layers} layers; it cannot be cut with them"
            )
        cut[key] = [value[layer] for layer in kept_layers]
    if isinstance(values.get("max_window_layers"), int):
        cut["max_window_layers"] = sum(layer < values["max_window_layers"] for layer in kept_layers)
    return cut
