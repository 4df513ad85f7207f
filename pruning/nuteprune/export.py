"""Export: masks and low-rank matrices folded into the weights, what is off cut away, written as a plan and a checkpoint."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from pruning import width
from pruning.families import Family, family_of
from pruning.nuteprune.masks import Masks
from pruning.nuteprune.resident import Resident, Side
from pruning.plan import Rows, WidthPlan
from pruning.surgery import build, fill
from stages.ragged import head_dim


def kept(mask: Tensor) -> tuple[int, ...]:
    """Indices of the units that are on, ascending."""
    return tuple(mask.nonzero().flatten().tolist())


def kept_rows(masks: Tensor) -> Rows:
    """The same for each layer."""
    return tuple(kept(row) for row in masks)


def smaller(values: dict[str, Any], num_hidden: int) -> dict[str, Any]:
    """The config (as a mapping) with fewer hidden dimensions: heads keep their width, eps grows by D / D_kept."""
    share = num_hidden / values["hidden_size"]
    eps = values.get("rms_norm_eps", 1e-6) / share
    return {**values, "hidden_size": num_hidden, "head_dim": head_dim(values), "rms_norm_eps": eps}


def _scaled(name: str, tensor: Tensor, share: float, family: Family) -> Tensor:
    """Undoes what a smaller D does to norms.

    RMSNorm over the masked D dimensions is x w / sqrt(sum x^2 / D + eps); over the D_kept that are not 0 it is the same with
    w sqrt(D / D_kept) and eps D / D_kept. Norms of queries and keys share that eps, but not the dimensions: there the
    projections before them grow by sqrt(D / D_kept), which gives q / sqrt(mean q^2 + eps) as before.
    """
    before_norm = family.query_key_norm and re.search(r"\.[qk]_proj\.", name)
    if before_norm or name.endswith(("layernorm.weight", f"{family.norm}.weight")):
        return tensor / math.sqrt(share)
    return tensor


def _side(name: str, family: Family) -> int | None:
    """The dimension of a weight that is the residual stream's; None for weights without it."""
    if name.endswith(("layernorm.weight", f"{family.norm}.weight")) or re.search(r"\.(o|down)_proj\.", name):
        return 0
    columns = (
        r"\.(q|k|v|gate|up)_proj\.weight",
        f"{re.escape(family.embeddings)}.weight",
        f"{re.escape(family.head)}.weight",
    )
    return 1 if any(re.search(pattern + "$", name) for pattern in columns) else None


def cut_hidden(model: PreTrainedModel, dimensions: tuple[int, ...]) -> PreTrainedModel:
    """A new model with only these dimensions of the residual stream; equal to the given one where the others are 0."""
    family, values = family_of(model.config), model.config.to_dict()
    config: PreTrainedConfig = type(model.config).from_dict(smaller(values, len(dimensions)))
    config._attn_implementation = model.config._attn_implementation
    chosen, share = torch.tensor(dimensions), len(dimensions) / values["hidden_size"]

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in model.state_dict().items():
            side = _side(name, family)
            if side is not None:
                tensor = tensor.index_select(side, chosen.to(tensor.device))
            yield name, _scaled(name, tensor, share, family)

    cut = build(config, model.dtype)
    with torch.no_grad():
        fill(cut, tensors())
    cut.generation_config = model.generation_config
    return cut.to(model.device)


def sliced(resident: Resident, side: Side, plan: WidthPlan) -> PreTrainedModel:
    """The model that is left, with nothing masked any more; the resident is used up."""
    assert side.masks is not None
    model = resident.fold(side)
    if side.masks.hidden is not None:
        model = cut_hidden(model, kept(side.masks.hidden))
    return width.carry_out(model, plan)


def config_values(values: dict[str, Any], masks: Masks) -> dict[str, Any]:
    """The target's config.json with the hidden dimensions that stay; its layers are narrowed by the plan."""
    return values if masks.hidden is None else smaller(values, len(kept(masks.hidden)))
