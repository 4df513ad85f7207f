"""Surgery: a model of the kept layers only, and the same model with layers bypassed in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import pruning.ragged.model  # noqa: F401 (registers ragged models)
from pruning import selection
from pruning.families import cut_config, family_of
from stages.errors import InputError

COMPUTED = ("rotary_emb.inv_freq",)
"""Endings of tensors that old checkpoints store and models compute."""


def pruned_config(config: PreTrainedConfig, kept_layers: Sequence[int]) -> PreTrainedConfig:
    """A new config for the model that keeps only ``kept_layers``."""
    family_of(config)
    cut: PreTrainedConfig = type(config).from_dict(cut_config(config.to_dict(), kept_layers))
    cut._attn_implementation = config._attn_implementation
    return cut


def build(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this shape; its weights are still to be filled in. Leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def fill(model: PreTrainedModel, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copies named weights into a model, each exactly once; where the lm_head shares the embeddings, those decide.

    Raises:
        InputError: a weight without a place, of another shape, or missing.
    """
    tied = {f"{family_of(model.config).head}.weight"} if model.config.tie_word_embeddings else set()
    places = {name: place for name, place in model.state_dict().items() if name not in tied}
    for name, tensor in tensors:
        if name in tied or name.endswith(COMPUTED):
            continue
        place = places.pop(name, None)
        if place is None:
            raise InputError(f"weight {name} has no place in a {type(model).__name__}; give a plain checkpoint")
        if place.shape != tensor.shape:
            raise InputError(f"weight {name} is {list(tensor.shape)}, but config.json asks for {list(place.shape)}")
        place.copy_(tensor)
    if places:
        raise InputError(f"weight {next(iter(places))} is missing ({len(places)} in all); the checkpoint is incomplete")


def prune_depth(model: PreTrainedModel, kept_layers: Sequence[int]) -> PreTrainedModel:
    """A new model of only ``kept_layers``, in the model's order; the given model stays as it is.

    The new model is built from the cut config, so layer_idx, layer types and caches are those of a plain smaller model.

    Raises:
        InputError: unknown architecture; layers that do not exist or are named twice.
    """
    family = family_of(model.config)
    kept = selection.explicit(model.config.num_hidden_layers, kept_layers)
    pruned = build(pruned_config(model.config, kept), model.dtype)
    renamed = ((family.rename(name, kept), tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        fill(pruned, ((name, tensor) for name, tensor in renamed if name is not None))
    pruned.generation_config = model.generation_config
    return pruned.to(model.device)


class Bypass(nn.Module):
    """Stands in for a removed layer: hands the hidden states on unchanged, or hands out stored ones."""

    def __init__(self, stored: torch.Tensor | None = None):
        super().__init__()
        self.stored = stored

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """Returns its input [B, T, D], or what is stored."""
        return hidden_states if self.stored is None else self.stored


@contextmanager
def bypassed(
    model: PreTrainedModel, removed_layers: Iterable[int], resume: tuple[int, torch.Tensor] | None = None
) -> Iterator[None]:
    """Within it, the model runs as if ``removed_layers`` were gone. No cache may be used (layer_idx keeps its gaps).

    Layers keep their places, because some families look up a layer's type by its place.

    Args:
        model: changed in place, and back afterwards.
        removed_layers: their indices.
        resume: (l, H) runs none of the layers 0 … l, and goes on after them with the states H [B, T, D].
    """
    layers = family_of(model.config).layers_of(model)
    skipped = range(resume[0] + 1) if resume else ()
    originals = {index: layers[index] for index in {*removed_layers, *skipped}}
    try:
        for index in originals:
            layers[index] = Bypass(resume[1] if resume and index == resume[0] else None)
        yield
    finally:
        for index, layer in originals.items():
            layers[index] = layer
