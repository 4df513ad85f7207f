"""Narrower layers: the model with only some channels of its MLPs and some groups of its heads.

A channel of an MLP is one product silu(gate) * up: a row of ``gate_proj`` and of ``up_proj``, a column of ``down_proj``. A
group of heads is one key-value head and the query heads that read it: rows of q, k and v, columns of o.
``channel_scores`` and ``strongest`` choose channels for drafts, equally many in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.calibration import Batch
from pruning.families import family_of
from pruning.plan import Rows, WidthPlan
from pruning.ragged.config import RAGGED
from pruning.shapes import check_uniform, narrow_config
from pruning.surgery import build, fill
from stages.errors import InputError
from stages.progress import Advance
from stages.ragged import head_dim, num_groups


def check_width(config: Any, width: int) -> None:
    """Refuses a width that leaves nothing, or more than there is.

    Raises:
        InputError: with the allowed range.
    """
    check_uniform(config, "mlp_width")
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

    Raises:
        InputError: a score that is NaN or infinite, naming the layer.
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
    scores = found / max(num_tokens, 1) * norms
    for layer, row in zip(layers, scores, strict=True):
        if not torch.isfinite(row).all():
            raise InputError(
                f"layer {layer}: NaN or infinity in the scores of its channels; check the target's weights"
            )
    return scores


def strongest(scores: torch.Tensor, width: int) -> Rows:
    """The ``width`` channels of each layer with the highest scores [layers, channels]; of equal ones the first."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return tuple(tuple(sorted(row[:width].tolist())) for row in order)


def _rows(indices: Sequence[int], size: int) -> torch.Tensor:
    """The rows of a matrix that belong to parts of ``size`` rows each."""
    return (torch.tensor(indices)[:, None] * size + torch.arange(size)).flatten()


def _chosen(
    part: str, channels: Sequence[int], groups: Sequence[int] | None, head: int, readers: int
) -> torch.Tensor | None:
    """Which rows (for o and down: columns) of a projection stay; None for all."""
    if part in ("gate", "up", "down"):
        return torch.tensor(channels)
    if groups is None:
        return None
    return _rows(groups, head if part in ("k", "v") else head * readers)


def _cut(model: PreTrainedModel, kept_channels: Rows, kept_groups: Rows | None) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights with only the kept rows and columns."""
    values = model.config.to_dict()
    head, readers = head_dim(values), values["num_attention_heads"] // num_groups(values)
    pattern = re.compile(re.escape(family_of(values).layers) + r"\.(\d+)\.(?:mlp|self_attn)\.(\w+)_proj\.(weight|bias)")
    for name, tensor in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is not None and not (match[2] in ("down", "o") and match[3] == "bias"):
            layer = int(match[1])
            groups = None if kept_groups is None else kept_groups[layer]
            chosen = _chosen(match[2], kept_channels[layer], groups, head, readers)
            if chosen is not None:
                tensor = tensor.index_select(1 if match[2] in ("down", "o") else 0, chosen.to(tensor.device))
        yield name, tensor


def _with_bias(
    tensors: Iterable[tuple[str, torch.Tensor]], empty: PreTrainedModel, down_bias: Sequence[Sequence[float]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights with ``down_bias`` [layers][hidden] added, and zeros for biases that only the new model has."""
    layers, found = family_of(empty.config).layers, dict(tensors)
    for name, place in empty.state_dict().items():
        if name.endswith("_proj.bias") and ".mlp." in name:
            found.setdefault(name, torch.zeros_like(place))
    for index, values in enumerate(down_bias):
        name = f"{layers}.{index}.mlp.down_proj.bias"
        own = found[name]
        found[name] = (own.double() + torch.tensor(values, dtype=torch.float64, device=own.device)).to(own.dtype)
    yield from found.items()


def carry_out(model: PreTrainedModel, plan: WidthPlan) -> PreTrainedModel:
    """A new model of only what a plan keeps; the given model stays as it is.

    Raises:
        InputError: the plan does not fit the model, or no plain model has its shape.
    """
    values = narrow_config(model.config.to_dict(), plan)
    config_class = type(model.config) if plan.export == "uniform" else RAGGED[type(model.config)]
    return _filled(model, config_class.from_dict(values), plan.kept_channels, plan.kept_groups, plan.down_bias)


def narrow(model: PreTrainedModel, kept_channels: Rows) -> PreTrainedModel:
    """A new model with only ``kept_channels``, equally many, in its MLPs; the given model stays as it is."""
    config = type(model.config).from_dict({**model.config.to_dict(), "intermediate_size": len(kept_channels[0])})
    return _filled(model, config, kept_channels)


def _filled(
    model: PreTrainedModel,
    config: PreTrainedConfig,
    kept_channels: Rows,
    kept_groups: Rows | None = None,
    down_bias: Sequence[Sequence[float]] | None = None,
) -> PreTrainedModel:
    """A model of this config with the kept weights of ``model`` in it."""
    config._attn_implementation = model.config._attn_implementation
    narrowed = build(config, model.dtype)
    tensors = _cut(model, kept_channels, kept_groups)
    with torch.no_grad():
        fill(narrowed, tensors if down_bias is None else _with_bias(tensors, narrowed, down_bias))
    narrowed.generation_config = model.generation_config
    return narrowed.to(model.device)
