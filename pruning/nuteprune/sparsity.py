"""How much masks remove: shares of the linear weights of the layers, expected or realised; which shapes are reachable. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pruning.families import family_of
from pruning.nuteprune.masks import Masks, deterministic_all, open_chance, opened
from stages.errors import InputError

TOLERANCE = 0.005
"""How far the nearest reachable sparsity may lie from the wanted one."""


@dataclass(frozen=True)
class Units:
    """What a model's masks act on. Only linear weights of the layers count: no embeddings, lm_head, norms or biases.

    Attributes:
        num_layers: L.
        groups: KV groups of a layer.
        neurons: channels of a layer's MLP.
        hidden: D.
        group_weights: linear weights of one group *per hidden dimension*: its rows of q, k, v and columns of o.
        plain_groups: numbers of groups that a plain model of the family can have, the same in all layers.
        heads: query heads; configs ask that the hidden size be a multiple of them.
    """

    num_layers: int
    groups: int
    neurons: int
    hidden: int
    group_weights: int
    plain_groups: tuple[int, ...]
    heads: int

    NEURON_WEIGHTS: ClassVar[int] = 3
    """Linear weights of one neuron per hidden dimension: gate row, up row, down column."""

    @property
    def total(self) -> int:
        """All weights that count."""
        return self.num_layers * self.layer_weights(self.groups, self.neurons) * self.hidden

    def layer_weights(self, groups: int, neurons: int) -> int:
        """Weights per hidden dimension of a layer with so many groups and neurons."""
        return groups * self.group_weights + neurons * self.NEURON_WEIGHTS


def units_of(config: Any, hidden: bool = False) -> Units:
    """Counts a target's units from its config; ``hidden`` when dimensions of the residual stream may go too."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Units(
        num_layers=config.num_hidden_layers,
        groups=groups,
        neurons=config.intermediate_size,
        hidden=config.hidden_size,
        group_weights=(2 * heads // groups + 2) * head_dim,
        plain_groups=_plain_groups(config, heads, groups, hidden),
        heads=heads,
    )


def _plain_groups(config: Any, heads: int, groups: int, hidden: bool) -> tuple[int, ...]:
    """How many groups a plain model of the family can have.

    A Llama's hidden size must be a multiple of its query heads (where it shrinks, to a multiple of the target's); some
    families derive the heads' width from their number.
    """
    family = family_of(config)
    if family.derived_head_dim:
        return (groups,)
    if family.model_type != "llama":
        return tuple(range(1, groups + 1))
    whole = heads if hidden else config.hidden_size
    return tuple(count for count in range(1, groups + 1) if whole % (count * heads // groups) == 0) or (groups,)


def expected(log_alphas: Masks, units: Units) -> Tensor:
    """Expected sparsity: 1 - the share of linear weights whose masks are all open, by P(z > 0); differentiable."""
    kept = open_chance(log_alphas.groups).sum() * units.group_weights
    kept = kept + open_chance(log_alphas.neurons).sum() * units.NEURON_WEIGHTS
    hidden = units.hidden if log_alphas.hidden is None else open_chance(log_alphas.hidden).sum()
    return 1 - kept * hidden / units.total


def realised(groups: Sequence[int], neurons: Sequence[int], hidden: int, units: Units) -> float:
    """Sparsity of a shape: so many groups and neurons in each layer, so many hidden dimensions."""
    kept = sum(units.layer_weights(*counts) for counts in zip(groups, neurons, strict=True))
    return 1 - kept * hidden / units.total


def counts(masks: Masks) -> tuple[list[int], list[int], int | None]:
    """Groups and neurons of each layer, and hidden dimensions, that a mask leaves on."""
    groups, neurons = ((rows != 0).sum(1).tolist() for rows in (masks.groups, masks.neurons))
    return groups, neurons, None if masks.hidden is None else int((masks.hidden != 0).sum())


Export = Literal["ragged", "uniform"]


def _reachable(wanted: float, units: Units, export: Export, multiple: int) -> float:
    """The reachable sparsity nearest to the wanted one, all hidden dimensions kept."""
    layers, uniform = units.num_layers, export == "uniform"
    groups = [layers * count for count in units.plain_groups] if uniform else range(layers, layers * units.groups + 1)
    step = multiple * layers if uniform else multiple
    lowest, highest = layers * multiple, layers * units.neurons
    best = 2.0
    for count in groups:
        ideal = (1 - wanted) * units.total / units.hidden - count * units.group_weights
        neurons = lowest + step * round((ideal / units.NEURON_WEIGHTS - lowest) / step)
        kept = count * units.group_weights + min(max(neurons, lowest), highest) * units.NEURON_WEIGHTS
        best = min(best, 1 - kept * units.hidden / units.total, key=lambda found: abs(found - wanted))
    return best


def check_reachable(wanted: float, units: Units, export: Export, multiple: int, hidden: bool) -> None:
    """Refuses a sparsity that no shape comes near to: each layer keeps a group, and neurons in multiples.

    Raises:
        InputError: with the nearest reachable one.
    """
    if units.neurons % multiple:
        raise InputError(
            f"multiple_of = {multiple} does not divide the target's {units.neurons} channels; give a divisor"
        )
    nearest = _reachable(wanted, units, export, multiple)
    if abs(nearest - wanted) > TOLERANCE and not hidden:
        raise InputError(
            f"sparsity {wanted} cannot be reached: every layer keeps at least 1 of {units.groups} KV groups and its "
            f"MLP's width is a multiple of {multiple} (export {export}); the nearest reachable is {nearest:.3f}; "
            "give that or a smaller multiple_of"
        )


def apportion(sizes: Sequence[float], total: float, multiple: int, highest: int) -> list[int]:
    """Integer sizes in the given proportions: multiples of ``multiple`` from ``multiple`` to ``highest``, nearest to a total.

    Sizes are scaled to the total; what exceeds a bound goes to the others; then largest remainders are rounded up.
    """
    wanted = [float(size) for size in sizes]
    for _ in wanted:
        excess = total - sum(wanted)
        bound = highest if excess > 0 else multiple
        free = [index for index, size in enumerate(wanted) if size != bound]
        if not free or abs(excess) < 1e-9:
            break
        factor = 1 + excess / sum(wanted[index] for index in free)
        for index in free:
            wanted[index] = min(max(wanted[index] * factor, multiple), highest)
    result = [int(size // multiple) * multiple for size in wanted]
    for index in sorted(range(len(wanted)), key=lambda index: result[index] - wanted[index]):
        if total - sum(result) >= multiple / 2 and result[index] + multiple <= highest:
            result[index] += multiple
    return result


def _width(wanted: float, units: Units, num_groups: int, hidden: int) -> float:
    """How many neurons, over all layers, the wanted sparsity leaves beside so many groups."""
    weights = (1 - wanted) * units.total / hidden - num_groups * units.group_weights
    return weights / units.NEURON_WEIGHTS


def uniform_counts(mean_groups: float, hidden: int, units: Units, wanted: float, multiple: int) -> tuple[int, int]:
    """Groups and width of every layer: groups nearest to the masks' mean with which the wanted sparsity can be met."""

    def width(groups: int) -> int:
        ideal = _width(wanted, units, groups * units.num_layers, hidden) / units.num_layers
        return min(max(round(ideal / multiple), 1) * multiple, units.neurons)

    def rank(groups: int) -> tuple[bool, float]:
        layers = units.num_layers
        found = realised([groups] * layers, [width(groups)] * layers, hidden, units)
        return abs(found - wanted) > TOLERANCE, abs(groups - mean_groups)

    groups = min(units.plain_groups, key=rank)
    return groups, width(groups)


def final_counts(
    groups: Sequence[int],
    neurons: Sequence[int],
    hidden: int,
    units: Units,
    wanted: float,
    export: Export,
    multiple: int,
) -> tuple[list[int], list[int]]:
    """Groups and neurons of each layer in the exported model: what the masks left on, brought to the wanted sparsity.

    Groups stay as the masks have them (``uniform``: about their mean, everywhere). Widths keep their proportions and meet the
    wanted sparsity as near as their multiple allows, where groups and hidden dimensions leave room for it.
    """
    layers = units.num_layers
    if export == "uniform":
        one, width = uniform_counts(sum(groups) / layers, hidden, units, wanted, multiple)
        return [one] * layers, [width] * layers
    total = _width(wanted, units, sum(groups), hidden)
    return list(groups), apportion([max(multiple, size) for size in neurons], total, multiple, units.neurons)


def final_masks(log_alphas: Masks, units: Units, wanted: float | None, export: Export, multiple: int) -> Masks:
    """The deterministic masks that are frozen and exported.

    Args:
        log_alphas: after the search.
        units: of the target.
        wanted: the sparsity to meet; None for the masks' own, rounded to what can be exported.
        export: ``uniform`` gives every layer as many groups and neurons.
        multiple: of the widths. Hidden dimensions are rounded to a multiple of the query heads.
    """
    groups, neurons, hidden = counts(deterministic_all(log_alphas))
    if hidden is not None:
        hidden = min(max(round(hidden / units.heads), 1) * units.heads, units.hidden)
    all_hidden = units.hidden if hidden is None else hidden
    wanted = realised(groups, neurons, all_hidden, units) if wanted is None else wanted
    kept_groups, kept_neurons = final_counts(groups, neurons, all_hidden, units, wanted, export, multiple)

    def cut(rows: Tensor, kept: Sequence[int]) -> Tensor:
        return torch.stack([opened(row, count) for row, count in zip(rows, kept, strict=True)])

    one = None if log_alphas.hidden is None else opened(log_alphas.hidden, all_hidden)
    return Masks(cut(log_alphas.groups, kept_groups), cut(log_alphas.neurons, kept_neurons), one)
