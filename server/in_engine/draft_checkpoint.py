"""Reads a draft's checkpoint as a plain model of its family, whatever its layers' shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.drafting import unsupported
from stages.ragged import filled_up, is_ragged, shapes

PROJECTION = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?:mlp|self_attn)\.(?P<part>\w+)_proj\.(?P<kind>weight|bias)")
SIZED_BY = {"gate": 0, "up": 0, "down": 0, "q": 1, "o": 1, "k": 2, "v": 2}
"""Which number of a layer's shape (FFN channels, query heads, key-value heads) sizes a projection."""
READERS = ("down", "o")
"""Projections that are sized by what they read; the others by what they write."""


def load(folder: Path) -> Any:
    """The model in float32; ragged layers are filled up with zeros to one shape (``stages.ragged.filled_up``).

    Raises:
        ValueError: a checkpoint that is not computed here, and why.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reason = unsupported(values)
    if reason is None:
        config = AutoConfig.for_model(**filled_up(values)) if is_ragged(values) else AutoConfig.from_pretrained(folder)
        reason = unsupported(config.to_dict())
    if reason is not None:
        raise ValueError(f"{folder}: {reason}")
    if not is_ragged(values):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _fill(model, folder, shapes(values))
    return model.eval()


def _own_shape(name: str, whole: Sequence[int], layers: Sequence[tuple[int, int, int]], head: int) -> list[int]:
    """The shape of a weight in the ragged model, where it is ``whole`` in the filled-up one."""
    match = PROJECTION.fullmatch(name)
    if match is None or (match["part"] in READERS and match["kind"] == "bias"):
        return list(whole)
    which = SIZED_BY[match["part"]]
    own = layers[int(match["layer"])][which] * (head if which else 1)
    return [whole[0], own] if match["part"] in READERS else [own, *whole[1:]]


@torch.no_grad()
def _fill(model: Any, folder: Path, layers: Sequence[tuple[int, int, int]]) -> None:
    """Copies a checkpoint's weights to the beginning of the model's; what is left of these becomes 0."""
    from safetensors.torch import load_file

    # a head that shares the embeddings is not among the parameters
    places: dict[str, Tensor] = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            place = places.pop(name, None)
            if place is None:
                continue
            asked = _own_shape(name, place.shape, layers, model.config.head_dim)
            if list(tensor.shape) != asked:
                raise ValueError(f"{folder}: weight {name} is {list(tensor.shape)}, but config.json asks for {asked}")
            place.zero_()
            place[tuple(slice(size) for size in asked)] = tensor
    if places:
        raise ValueError(f"{folder}: weight {next(iter(places))} is missing ({len(places)} in all)")
