"""Reads a draft's checkpoint as a plain model of its family, whatever its layers' shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from server.drafting import unsupported
from stages.ragged import filled_up, is_ragged


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
    _fill(model, folder)
    return model.eval()


@torch.no_grad()
def _fill(model: Any, folder: Path) -> None:
    """Copies a checkpoint's weights to the beginning of the model's; what is left of these becomes 0."""
    from safetensors.torch import load_file

    # a head that shares the embeddings is not among the parameters
    places: dict[str, Tensor] = dict(model.named_parameters())
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            place = places.pop(name, None)
            if place is not None:
                place.zero_()
                place[tuple(slice(size) for size in tensor.shape)] = tensor
    if places:
        raise ValueError(f"{folder}: weight {next(iter(places))} is missing ({len(places)} in all)")
