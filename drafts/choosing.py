"""Chooses how many tokens the draft proposes at which batch size, one by one or in one pass; or suffix decoding, or nothing.

A pure function of measurements (``drafts.measurements``), by what they predict (``drafts.predicting``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from drafts.choice import Choice, ChooseSettings, Considered, Expected, Prediction
from drafts.explaining import reason, ways_compared
from drafts.measurements import Measurements, Way
from drafts.predicting import acceptance_length, cost_split, expected_speedups, geometric_mean, overall, predict
from drafts.suffix import weigh
from stages.errors import InputError


def consider(measurements: Measurements, settings: ChooseSettings) -> tuple[Considered, ...]:
    """Every way and concurrency with every number of draft tokens that the measurements allow."""
    if not measurements.acceptances:
        raise InputError("measurements: no acceptance was measured")
    longest = min(len(acceptance.histogram) - 1 for acceptance in measurements.acceptances)
    return tuple(
        Considered(
            concurrency=n, num_speculative_tokens=k, speedup=overall(measurements, k, n, way), way=way,
            worst=min(expected_speedups(measurements, k, n, way)),
        )
        for way in measurements.ways
        for n in measurements.concurrencies
        for k in range(1, min(longest, settings.max_tokens) + 1)
    )  # fmt: skip


def _pick(considered: Sequence[Considered], settings: ChooseSettings) -> int:
    """Draft tokens for one concurrency; 0 where none pays."""
    paying = [item for item in considered if item.pays(settings)]
    best = max((item.speedup for item in paying), default=0.0)
    least = best * (1 - settings.indifference)
    return next((item.num_speculative_tokens for item in paying if item.speedup >= least), 0)


def schedule_of(picked: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    """Ranges of batch sizes around the measured ones: each reaches to the geometric middle between it and the next."""
    sizes = sorted(picked)
    ends = [math.isqrt(low * high) for low, high in pairwise(sizes)] + [sizes[-1]]
    entries: list[tuple[int, int, int]] = []
    for tokens, group in groupby(zip(sizes, ends, strict=True), key=lambda pair: picked[pair[0]]):
        first = entries[-1][1] + 1 if entries else 1
        entries.append((first, max(end for _, end in group), tokens))
    return tuple(entries)


def _picked(considered: Sequence[Considered], way: Way, settings: ChooseSettings) -> dict[int, int]:
    """Draft tokens by concurrency, in one way of drafting."""
    own = [item for item in considered if item.way == way]
    picked = {
        n: _pick([item for item in own if item.concurrency == n], settings)
        for n in sorted({item.concurrency for item in own})
    }
    return picked if way == "draft" else _one_number(own, picked, settings)


def _one_number(own: Sequence[Considered], picked: dict[int, int], settings: ChooseSettings) -> dict[int, int]:
    """The same draft tokens, or none, at every concurrency: vLLM drafts in one pass with one number of mask tokens only."""
    at = {(c.concurrency, c.num_speculative_tokens): c for c in own}

    def gain(tokens: int) -> float:
        return geometric_mean([c.speedup if (c := at[n, tokens]).pays(settings) else 1.0 for n in picked])

    numbers = sorted({c.num_speculative_tokens for c in own})
    best = max(map(gain, numbers))
    tokens = next(k for k in numbers if gain(k) >= best * (1 - settings.indifference))
    return {n: tokens if at[n, tokens].pays(settings) else 0 for n in picked}


def _gain(considered: Sequence[Considered], way: Way, settings: ChooseSettings) -> float:
    """Expected speed-up of a way with the best number of tokens at each concurrency: geometric mean over concurrencies."""
    speedup_of = {(c.concurrency, c.num_speculative_tokens): c.speedup for c in considered if c.way == way}
    return geometric_mean([speedup_of.get(item, 1.0) for item in _picked(considered, way, settings).items()])


def choose(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The draft as it serves best, suffix decoding where that was served faster, or neither."""
    return weigh(_choose_draft(measurements, settings), measurements, settings)


def _choose_draft(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The better way of drafting, and the fewest draft tokens among the best at each batch size, or none where they gain little."""
    considered = consider(measurements, settings)
    bests = {way: max(item.speedup for item in considered if item.way == way) for way in measurements.ways}
    way = max(measurements.ways, key=lambda way: (_gain(considered, way, settings), bests[way]))
    own = [item for item in considered if item.way == way]
    picked = _picked(considered, way, settings)
    most = max(picked.values()) or None
    splits = [cost_split(measurements.costs, n, way) for n in measurements.concurrencies]
    expected = _expected(measurements, picked, way) if most else None
    said = reason(own, picked, expected, settings)
    if most and len(measurements.ways) > 1:
        gains = {found: _gain(considered, found, settings) for found in measurements.ways}
        said += " " + ways_compared(gains, way)
    return Choice(
        num_speculative_tokens=most, schedule=schedule_of(picked), expected=expected, considered=considered,
        costs=tuple(split for split in splits if split), reason=said, way=way,
    )  # fmt: skip


def _expected(measurements: Measurements, picked: dict[int, int], way: Way) -> Expected:
    concurrency = next(n for n, tokens in sorted(picked.items()) if tokens)
    tokens = picked[concurrency]
    own = [acceptance for acceptance in measurements.acceptances if acceptance.way == way]
    lengths = [acceptance_length(item.histogram, tokens) for item in own]
    length = sum(lengths) / len(lengths)
    predictions = tuple(
        Prediction(kind=a.kind, temperature=a.temperature, concurrency=n, speedup=predict(measurements, a, k, n))
        for n, k in picked.items()
        for a in own
    )
    return Expected(
        speedup=overall(measurements, tokens, concurrency, way), acceptance_rate=(length - 1) / tokens,
        mean_acceptance_length=length, predictions=predictions,
    )  # fmt: skip
