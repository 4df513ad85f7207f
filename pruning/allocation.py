"""How wide each layer becomes: pure functions of plain numbers. Widths are channels that stay; densities shares that stay."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from stages.errors import InputError

CAP = 1 - 1 / 1.05
"""The widest layer loses at least this share of the wanted sparsity (arXiv 2409.13199, its released code)."""


def importance(distances: Sequence[float], alpha: float) -> list[float]:
    """n_l = sigmoid(alpha (rho_l - mean rho)) of CFSP's coarse allocation, in [0, 1]; a layer that turns more has more.

    Args:
        distances: rho_l, mean angular distance between a layer's input and output, in [0, 1].
        alpha: steepness. 13.1 gives the released code's, which divides a sum over 131,072 tokens by 1e4.
    """
    mean = math.fsum(distances) / len(distances)
    return [(1 + math.tanh(alpha * (distance - mean) / 2)) / 2 for distance in distances]


def densities(importances: Sequence[float], sparsity: float) -> list[float]:
    """keep_l = (1 - p) n_l / mean(n); where one would reach 1, all deviations from the mean shrink so that it is below.

    Args:
        importances: n_l.
        sparsity: p, in (0, 1). The mean of the result is 1 - p.
    """
    mean = math.fsum(importances) / len(importances)
    shares = [importance / mean - 1 for importance in importances]
    widest = 1 - sparsity * CAP
    scale = 1.0
    if (1 - sparsity) * (1 + max(shares)) >= 1:
        scale = (widest / (1 - sparsity) - 1) / max(shares)
    return [(1 - sparsity) * (1 + scale * share) for share in shares]


def standardised(scores: Sequence[Sequence[float]], sparsity: float) -> list[float]:
    """FLAP's adaptive structure (arXiv 2312.11983): scores as z-scores within each layer, the best of all layers stay.

    Args:
        scores: [L][F].
        sparsity: p, in (0, 1).

    Returns:
        density of each layer, in [0, 1]; their mean is 1 - p rounded to a channel.
    """
    places = [(-value, layer) for layer, row in enumerate(scores) for value in _z_score(row)]
    kept = Counter(layer for _, layer in sorted(places)[: round(len(places) * (1 - sparsity))])
    return [kept[layer] / len(row) for layer, row in enumerate(scores)]


def _z_score(row: Sequence[float]) -> list[float]:
    """Distance from the row's mean in its standard deviations (N - 1); zeros for a row of equal scores."""
    mean = math.fsum(row) / len(row)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / max(len(row) - 1, 1))
    return [(value - mean) / deviation if deviation else 0.0 for value in row]


def check_round_to(width: int, round_to: int) -> None:
    """Refuses a multiple that no width can have."""
    if not 1 <= round_to <= width:
        raise InputError(f"round_to must be from 1 to {width}, the width of the target's FFNs; given {round_to}")


def _units(wanted: float, sparsity: float, least: int, most: int, full: float, tolerance: float) -> int:
    """The whole number of units nearest to ``wanted``; InputError when what it removes is not what was asked for."""
    units = min(max(round(wanted), least), most)
    realised = 1 - units / full
    if abs(realised - sparsity) > tolerance or realised <= 0:
        how = (
            f"sparsity {sparsity:g} cannot be reached to within {tolerance:g} (tolerance) with widths in multiples of round_to and "
            "at least one multiple a layer"
        )
        nearest = realised if realised > 0 else 1 - (units - 1) / full
        if units - (realised <= 0) < least:
            raise InputError(f"{how}, nor any other; give a smaller round_to")
        raise InputError(f"{how}: the nearest is {nearest:.4g}; give that, or a smaller round_to")
    return units


def uniform_widths(num_layers: int, width: int, sparsity: float, round_to: int, tolerance: float) -> list[int]:
    """The same width for every layer: the multiple of ``round_to`` nearest to width (1 - p).

    Raises:
        InputError: that removes another share than asked for, by more than ``tolerance``.
    """
    check_round_to(width, round_to)
    full = width / round_to
    units = _units(full * (1 - sparsity), sparsity, 1, width // round_to, full, tolerance)
    return [units * round_to] * num_layers


def ragged_widths(kept: Sequence[float], width: int, sparsity: float, round_to: int, tolerance: float) -> list[int]:
    """Multiples of ``round_to`` near each layer's density, at least one each, that keep (1 - p) of all as nearly as can be.

    Every layer gets the multiples below its density; what is missing goes one by one to the layers furthest below.

    Args:
        kept: density of each layer, with a mean of 1 - p.
        width: channels of each layer before.
        sparsity: p, in (0, 1).
        round_to: of widths.
        tolerance: how far the realised sparsity may be from p.

    Raises:
        InputError: no such widths remove p of all; the nearest sparsity is named.
    """
    check_round_to(width, round_to)
    most, full = width // round_to, width / round_to
    total = len(kept) * full
    wanted_units = _units(total * (1 - sparsity), sparsity, len(kept), len(kept) * most, total, tolerance)
    wanted = [density * full for density in kept]
    units = [min(max(math.floor(value), 1), most) for value in wanted]
    while (missing := wanted_units - sum(units)) != 0:
        step = 1 if missing > 0 else -1
        free = [layer for layer, count in enumerate(units) if 1 <= count + step <= most]
        layer = max(free, key=lambda index: step * (wanted[index] - units[index]))
        units[layer] += step
    return [count * round_to for count in units]
