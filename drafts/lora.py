"""LoRA whose rank differs from layer to layer, by how important a layer was when the model was narrowed (arXiv 2409.13199)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pruning.plan import AnyPlan, WidthPlan
from stages.errors import InputError

LoraRanks = Literal["uniform", "important_first", "pruned_first"]

SCALE = 2
"""alpha_l / r_l: how much of the low-rank product is added, the same in every layer."""


def mirrored(importance: Sequence[float]) -> list[float]:
    """Importance turned around within its own range: what was least important, and lost most, comes first."""
    return [max(importance) + min(importance) - value for value in importance]


def allocated(rank: int, weights: Sequence[float]) -> list[int]:
    """A rank for each layer in proportion to its weight, at least 1, with ``rank`` as their mean.

    r_l = max(1, round(r * L * n_l / sum n)). What rounding and the least of 1 add or take is given back where it changes the ranks'
    proportions least, so that the mean is exactly the uniform rank and budgets stay equal (the paper leaves it out).
    """
    total = rank * len(weights)
    wanted = [total * weight / math.fsum(weights) for weight in weights]
    ranks = [max(1, round(value)) for value in wanted]
    while (over := sum(ranks) - total) != 0:
        step = -1 if over > 0 else 1
        able = [layer for layer, own in enumerate(ranks) if own + step >= 1]
        nearest = max(able, key=lambda layer: step * (wanted[layer] - ranks[layer]))
        ranks[nearest] += step
    return ranks


def layer_ranks(rank: int, how: LoraRanks, importance: Sequence[float] | None, source: str) -> list[int] | None:
    """The rank of each layer; None where all have the same.

    Raises:
        InputError: ranks by importance for a model whose plan has none.
    """
    if how == "uniform":
        return None
    if importance is None:
        raise InputError(
            f"lora_ranks {how!r}: the plan of {source} has no importance of layers; narrow the target with "
            "'prune --method cfsp' or one of its baselines, or set lora_ranks to uniform"
        )
    return allocated(rank, importance if how == "important_first" else mirrored(importance))


def importance_of(plan: AnyPlan) -> tuple[float, ...] | None:
    """The importance of the layers that a plan was made from, if it was."""
    return plan.importance if isinstance(plan, WidthPlan) else None


def add_lora(model: Any, rank: int, token: int | None = None, ranks: Sequence[int] | None = None) -> Any:
    """Wraps the model with LoRA on all linear layers but the head; base weights are frozen, but for the embedding of ``token``.

    Args:
        model: the pruned model.
        rank: of every layer that ``ranks`` does not name.
        token: its embedding is trained.
        ranks: of the decoder layers, in order.
    """
    from peft import LoraConfig, get_peft_model

    named = {rf"layers\.{layer}\..*": own for layer, own in enumerate(ranks or ())}
    config = LoraConfig(
        r=rank, lora_alpha=SCALE * rank, target_modules="all-linear", task_type="CAUSAL_LM",
        trainable_token_indices=None if token is None else [token], rank_pattern=named,
        alpha_pattern={name: SCALE * own for name, own in named.items()},
    )  # fmt: skip
    return get_peft_model(model, config)
