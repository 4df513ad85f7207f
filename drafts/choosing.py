"""Chooses how many tokens the draft proposes at which batch size, one by one or in one pass; or suffix decoding, or nothing.

A pure function of measurements (``drafts.measurements``), by what they predict (``drafts.predicting``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise

from drafts.choice import Choice, ChooseSettings, Considered
from drafts.explaining import reason, ways_compared
from drafts.measurements import Measurements, Way
from drafts.predicting import (
    acceptance_length,
    cost_split,
    expected_speedups,
    geometric_mean,
    idles,
    overall,
    predict,
)
from drafts.suffix import weigh
from server.pair import Expected, Prediction
from stages.errors import InputError


def consider(measurements: Measurements, settings: ChooseSettings) -> tuple[Considered, ...]:
    """Every way and concurrency with every number of draft tokens that the measurements allow.

    Drafting nothing is among them where it was timed: then it is not what plain decoding is.
    """
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
        for k in range(0 if idles(measurements.costs, n, way) else 1, min(longest, settings.max_tokens) + 1)
    )  # fmt: skip


Options = dict[int, list[Considered]]
"""For each concurrency what can be done there in one way of drafting, by number of tokens, beginning with drafting nothing."""


def _options(considered: Sequence[Considered], way: Way) -> Options:
    own: Options = {}
    for item in considered:
        if item.way == way:
            nothing = Considered(
                concurrency=item.concurrency, num_speculative_tokens=0, speedup=1.0, worst=1.0, way=way
            )
            own.setdefault(item.concurrency, [] if item.num_speculative_tokens == 0 else [nothing]).append(item)
    return dict(sorted(own.items()))


def _take(options: Sequence[Considered], settings: ChooseSettings) -> Considered | None:
    """The fewest draft tokens among the best that pay; where none pay, none are drafted, or whatever else keeps the floor.

    Returns:
        None where nothing keeps the floor, not even drafting nothing.
    """
    paying = [item for item in options if item.pays(settings)]
    if paying:
        least = max(item.speedup for item in paying) * (1 - settings.indifference)
        return next(item for item in paying if item.speedup >= least)
    bearable = [item for item in options if item.worst >= settings.floor]
    nothing = [item for item in bearable if item.num_speculative_tokens == 0]
    return max(nothing or bearable, key=lambda item: item.speedup, default=None)


def schedule_of(picked: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    """Ranges of batch sizes around the measured ones: each reaches to the geometric middle between it and the next."""
    sizes = sorted(picked)
    ends = [math.isqrt(low * high) for low, high in pairwise(sizes)] + [sizes[-1]]
    entries: list[tuple[int, int, int]] = []
    for tokens, group in groupby(zip(sizes, ends, strict=True), key=lambda pair: picked[pair[0]]):
        first = entries[-1][1] + 1 if entries else 1
        entries.append((first, max(end for _, end in group), tokens))
    return tuple(entries)


def _picked(considered: Sequence[Considered], way: Way, settings: ChooseSettings) -> dict[int, Considered] | None:
    """What is done at each concurrency in one way of drafting; None where that draft does not pay over all, or breaks the floor."""
    options = _options(considered, way)
    taken = _each(options, settings) if way == "draft" else _one_number(options, settings)
    drafts = taken and any(item.num_speculative_tokens for item in taken.values())
    return taken if drafts and _gain(taken) > 1 else None


def _each(options: Options, settings: ChooseSettings) -> dict[int, Considered] | None:
    """What is best at each concurrency by itself; None where there is one at which nothing keeps the floor."""
    taken = {n: found for n, items in options.items() if (found := _take(items, settings))}
    return taken if len(taken) == len(options) else None


def _one_number(options: Options, settings: ChooseSettings) -> dict[int, Considered] | None:
    """The same draft tokens, or none, at every concurrency: vLLM drafts in one pass with one number of mask tokens only.

    Of two numbers the smaller one is taken if it gives as much, as far as that can be told, where either drafts.
    """
    numbers = sorted({item.num_speculative_tokens for items in options.values() for item in items} - {0})
    by_number = [
        taken
        for k in numbers
        if (
            taken := _each(
                {n: [o for o in items if o.num_speculative_tokens in (0, k)] for n, items in options.items()}, settings
            )
        )
    ]
    best = max(by_number, key=_gain, default=None)
    for taken in by_number:
        assert best is not None
        drafting = [n for n in taken if taken[n].num_speculative_tokens or best[n].num_speculative_tokens]
        if not drafting:
            continue
        own, most = (_gain({n: found[n] for n in drafting}) for found in (taken, best))
        if own >= most * (1 - settings.indifference):
            return taken
    return None


def _gain(taken: dict[int, Considered] | None) -> float:
    """Expected speed-up: geometric mean over concurrencies; 1 without a draft."""
    return geometric_mean([item.speedup for item in taken.values()]) if taken else 1.0


def choose(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The draft as it serves best, suffix decoding where that was served faster, or neither."""
    return weigh(_choose_draft(measurements, settings), measurements, settings)


def _choose_draft(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The better way of drafting, and the fewest draft tokens among the best at each batch size, or none where they gain little."""
    considered = consider(measurements, settings)
    taken = {way: _picked(considered, way, settings) for way in measurements.ways}
    bests = {way: max(item.speedup for item in considered if item.way == way) for way in measurements.ways}
    way = max(measurements.ways, key=lambda way: (_gain(taken[way]), bests[way]))
    own = [item for item in considered if item.way == way]
    found = taken[way]
    picked = {n: found[n].num_speculative_tokens if found else 0 for n in measurements.concurrencies}
    most = max(picked.values()) or None
    splits = [cost_split(measurements.costs, n, way) for n in measurements.concurrencies]
    expected = _expected(measurements, picked, way) if most else None
    said = reason(own, picked, expected, settings)
    if most and len(measurements.ways) > 1:
        said += " " + ways_compared({other: _gain(taken[other]) for other in measurements.ways}, way)
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
