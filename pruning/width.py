"""Narrower MLPs: which channels of each layer stay, told by what they add on calibration text, and the model of those only.

A channel of an MLP is one product silu(gate) * up: a row of ``gate_proj`` and of ``up_proj``, a column of ``down_proj``. All
layers keep the same number of them, because engines expect one ``intermediate_size``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.calibration import Batch
from pruning.families import family_of
from pruning.surgery import build, fill
from stages.errors import InputError
from stages.progress import Advance

Channels = tuple[tuple[int, ...], ...]
"""For each layer the channels that stay, ascending."""


def check_width(config: Any, width: int) -> None:
    """Refuses a width that leaves nothing, or more than there is.

    Raises:
        InputError: with the allowed range.
    """
    if not 1 <= width < config.intermediate_size:
        raise InputError(
            f"mlp_width must be from 1 to {config.intermediate_size - 1} (the target's MLPs have {config.intermediate_size} "
            f"channels), given {width}"
        )


@torch.no_grad()
def channel_scores(
    model: PreTrainedModel, batches: Iterable[Batch], layers: Sequence[int], advance: Advance | None = None
) -> torch.Tensor:
    """What each channel of the MLPs of ``layers`` adds to the residual stream: mean |activation| times its column's norm.

    Returns:
        float64 [len(layers), intermediate_size].
    """
    found = torch.zeros(len(layers), model.config.intermediate_size, dtype=torch.float64)
    downs = [family_of(model.config).layers_of(model)[layer].mlp.down_proj for layer in layers]
    mask = torch.empty(0)
    num_tokens = 0

    def add(row: int) -> Callable[..., None]:
        def hook(_: Any, args: Any) -> None:
            found[row] += args[0][mask.to(args[0].device)].double().abs().sum(0).cpu()

        return hook

    handles = [down.register_forward_pre_hook(add(row)) for row, down in enumerate(downs)]
    try:
        for batch in batches:
            moved = batch.to(model.device)
            mask = moved.attention_mask.bool()
            model.base_model(input_ids=moved.input_ids, attention_mask=moved.attention_mask, use_cache=False)
            num_tokens += batch.num_tokens
            if advance is not None:
                advance(batch.num_tokens)
    finally:
        for handle in handles:
            handle.remove()
    norms = torch.stack([down.weight.double().norm(dim=0).cpu() for down in downs])
    return found / max(num_tokens, 1) * norms


def strongest(scores: torch.Tensor, width: int) -> Channels:
    """The ``width`` channels of each layer with the highest scores [layers, channels]; of equal ones the first."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return tuple(tuple(sorted(row[:width].tolist())) for row in order)


def narrow(model: PreTrainedModel, kept_channels: Channels) -> PreTrainedModel:
    """A new model with only ``kept_channels`` in its MLPs; the given model stays as it is."""
    family = family_of(model.config)
    pattern = re.compile(re.escape(family.layers) + r"\.(\d+)\.mlp\.(gate|up|down)_proj\.(weight|bias)")
    config = type(model.config).from_dict({**model.config.to_dict(), "intermediate_size": len(kept_channels[0])})
    config._attn_implementation = model.config._attn_implementation
    narrowed = build(config, model.dtype)

    def cut(name: str, tensor: torch.Tensor) -> torch.Tensor:
        match = pattern.fullmatch(name)
        if match is None or match.groups()[1:] == ("down", "bias"):
            return tensor
        chosen = torch.tensor(kept_channels[int(match[1])], device=tensor.device)
        return tensor.index_select(1 if match[2] == "down" else 0, chosen)

    with torch.no_grad():
        fill(narrowed, ((name, cut(name, tensor)) for name, tensor in model.state_dict().items()))
    narrowed.generation_config = model.generation_config
    return narrowed.to(model.device)
