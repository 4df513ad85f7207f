"""Chooses how many tokens the draft proposes at which batch size, one by one or in one pass, or that no draft pays.

A pure function of measurements. For K = num_speculative_tokens, n requests at a time and answers of L further tokens (arXiv
2211.17192, with measured costs instead of assumed):

    tau(K)   = 1 + sum_{j=1..K} P(first j draft tokens accepted)        mean acceptance length, bonus token included
    step(K)  = base + slope * K                                         from steps timed at two values of K
    speed-up = (L * plain step + n * r) / (L / tau(K) * step(K) + n * r')

r and r' are the times to the first token, without and with a draft: an engine reads the prompts of requests that share a step
one after another, and a draft has to read them too. Where the costs of a step come from, in plain steps: v, a step that checks
K + 1 tokens but drafts for free, and c, a draft token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Literal

from pydantic import Field

from stages.errors import InputError
from stages.settings import Settings

Way = Literal["draft", "parallel"]
"""How draft tokens are proposed: one after another, or all in one pass of the draft (``drafts.parallel``)."""
Stepping = Literal["plain", "verify", "draft", "parallel"]
"""What a step does: plain decoding, checking draft tokens that cost nothing, or drafting and checking in one of two ways."""


class StepCost(Settings):
    """Seconds of one engine step.

    Attributes:
        concurrency: requests that share the step.
        seconds: median over answers; of other methods than plain, plain's times the median ratio to plain's step of the
            same turn.
        low: lower quartile, ``high`` the upper, likewise.
    """

    method: Stepping
    concurrency: int = Field(ge=1)
    num_speculative_tokens: int = Field(ge=0)
    seconds: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class Acceptance(Settings):
    """How many draft tokens the steps of one kind of traffic accepted.

    Attributes:
        histogram: steps that accepted exactly 0, 1, … K tokens, all with the same K = len - 1.
    """

    kind: str
    temperature: float
    histogram: tuple[int, ...]
    way: Way = "draft"


class FirstToken(Settings):
    """What an answer costs before its first token.

    Attributes:
        seconds: median time to the first token of one request at a time, rated as ``StepCost.seconds`` is.
        later_tokens: mean number of tokens that follow it.
    """

    method: Literal["plain", "draft", "parallel"]
    seconds: float = Field(gt=0)
    later_tokens: float = Field(gt=0)


class Measurements(Settings):
    """What ``understudy measure`` found in the real engine on this machine.

    Attributes:
        enforce_eager, engine_args: how the engines were started; the pair is served the same way.
    """

    enforce_eager: bool | None = None
    engine_args: tuple[str, ...] = ()
    costs: tuple[StepCost, ...]
    acceptances: tuple[Acceptance, ...]
    first_tokens: tuple[FirstToken, ...] = ()
    """Empty where no request was asked by itself; predictions leave prompts out then."""

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways of drafting that were measured."""
        return tuple(dict.fromkeys(acceptance.way for acceptance in self.acceptances))

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """The numbers of requests at a time that were timed, ascending."""
        return tuple(sorted({cost.concurrency for cost in self.costs}))


class ChooseSettings(Settings):
    """What decides the choice.

    Attributes:
        min_gain: no draft is used where the expected speed-up is below 1 + this.
        floor: no number of draft tokens is taken with which a kind of prompt, at any measured temperature, is expected to be
            served at less than this share of plain decoding's speed.
        indifference: the fewest draft tokens are taken whose expected speed-up is within this share of the best one's.
            Fewer tokens cost less when requests share a step, and such a difference is below what measuring resolves.
        max_tokens: the largest num_speculative_tokens to consider; what was measured bounds it too.
    """

    min_gain: float = Field(default=0.03, ge=0)
    floor: float = Field(default=0.98, ge=0, le=1)
    indifference: float = Field(default=0.02, ge=0, lt=1)
    max_tokens: int = Field(default=8, ge=1)


class CostSplit(Settings):
    """Where a speculative step's time goes, in plain steps at the same concurrency.

    Attributes:
        verify: v, a step that checks ``num_speculative_tokens`` + 1 tokens and drafts for free; with quartiles.
        draft: c, each draft token.
    """

    concurrency: int
    num_speculative_tokens: int
    verify: float
    verify_low: float
    verify_high: float
    draft: float


class Prediction(Settings):
    """Expected speed-up of one kind of traffic with the chosen setting."""

    kind: str
    temperature: float
    concurrency: int
    speedup: float


class Expected(Settings):
    """What the chosen setting should give, so that the gateway can say when reality drifts from it.

    Attributes:
        speedup: at the lowest measured concurrency, as are the two others.
        predictions: for every kind, temperature and measured concurrency.
    """

    speedup: float
    acceptance_rate: float
    mean_acceptance_length: float
    predictions: tuple[Prediction, ...] = ()


class Considered(Settings):
    """A number of draft tokens at a concurrency.

    Attributes:
        speedup: expected, over all kinds and temperatures.
        worst: expected of the kind and temperature that gain least.
    """

    concurrency: int
    num_speculative_tokens: int
    speedup: float
    worst: float
    way: Way = "draft"

    def pays(self, settings: ChooseSettings) -> bool:
        """Whether it gains enough over all, and takes too much from none."""
        return self.speedup >= 1 + settings.min_gain and self.worst >= settings.floor


class Choice(Settings):
    """The decision.

    Attributes:
        num_speculative_tokens: the most that is drafted at any batch size; None when no draft pays anywhere.
        schedule: (first batch size, last, draft tokens), ascending and without gaps; one entry when it is the same for
            all. The last entry holds for all larger batches too.
        considered: what was considered, by way, concurrency and number of tokens.
        costs: where the time of a step goes, by concurrency, in the chosen way.
        way: how draft tokens are proposed.
    """

    num_speculative_tokens: int | None
    schedule: tuple[tuple[int, int, int], ...]
    expected: Expected | None
    considered: tuple[Considered, ...]
    costs: tuple[CostSplit, ...]
    reason: str
    way: Way = "draft"

    @property
    def by_concurrency(self) -> dict[int, int]:
        """Draft tokens at each measured concurrency."""
        measured = sorted({item.concurrency for item in self.considered})
        return {n: next((k for first, last, k in self.schedule if first <= n <= last), 0) for n in measured}


def acceptance_length(histogram: Sequence[int], num_speculative_tokens: int) -> float:
    """Mean acceptance length (bonus token included) that K tokens would have had.

    In either way token j is proposed without knowing K, so the first K positions of a longer run count as is.
    """
    steps = sum(histogram)
    if steps == 0:
        raise InputError("measurements: an acceptance histogram has no steps; measure with more prompts")
    accepted = sum(min(j, num_speculative_tokens) * count for j, count in enumerate(histogram))
    return 1 + accepted / steps


def _costs(costs: Sequence[StepCost], method: str, concurrency: int) -> list[StepCost]:
    found = [cost for cost in costs if (cost.method, cost.concurrency) == (method, concurrency)]
    return sorted(found, key=lambda cost: cost.num_speculative_tokens)


def plain_cost(costs: Sequence[StepCost], concurrency: int) -> StepCost:
    """A plain step."""
    found = _costs(costs, "plain", concurrency)
    if not found:
        raise InputError(f"measurements: the plain step at concurrency {concurrency} is missing")
    return found[0]


def step_seconds(costs: Sequence[StepCost], num_speculative_tokens: int, concurrency: int, way: Way = "draft") -> float:
    """Seconds of a step with K draft tokens: on the line through the smallest and the largest measured K.

    Never less than a plain step, which a noisy line would otherwise promise at small K.
    """
    measured = [(cost.num_speculative_tokens, cost.seconds) for cost in _costs(costs, way, concurrency)]
    if len({k for k, _ in measured}) < 2:
        raise InputError(
            f"measurements: steps at two different num_speculative_tokens are needed at concurrency {concurrency}"
        )
    (k0, s0), (k1, s1) = measured[0], measured[-1]
    on_line = s0 + (s1 - s0) * (num_speculative_tokens - k0) / (k1 - k0)
    return max(on_line, plain_cost(costs, concurrency).seconds)


def cost_split(costs: Sequence[StepCost], concurrency: int, way: Way = "draft") -> CostSplit | None:
    """v and c at the largest measured K; None where no step with free draft tokens was timed."""
    verify, draft = _costs(costs, "verify", concurrency), _costs(costs, way, concurrency)
    if not verify or not draft:
        return None
    plain, checked, drafted = plain_cost(costs, concurrency).seconds, verify[-1], draft[-1]
    tokens = drafted.num_speculative_tokens
    return CostSplit(
        concurrency=concurrency, num_speculative_tokens=tokens, verify=checked.seconds / plain,
        verify_low=checked.low / plain, verify_high=checked.high / plain,
        draft=(drafted.seconds - checked.seconds) / tokens / plain,
    )  # fmt: skip


def predict(measurements: Measurements, acceptance: Acceptance, num_speculative_tokens: int, concurrency: int) -> float:
    """Expected speed-up of one kind of traffic."""
    if num_speculative_tokens == 0:
        return 1.0
    plain = plain_cost(measurements.costs, concurrency).seconds
    step = step_seconds(measurements.costs, num_speculative_tokens, concurrency, acceptance.way)
    length = acceptance_length(acceptance.histogram, num_speculative_tokens)
    first = {found.method: found for found in measurements.first_tokens}
    if "plain" not in first or acceptance.way not in first:
        return length * plain / step
    later, reads = first["plain"].later_tokens, concurrency * first["plain"].seconds
    drafted_reads = concurrency * first[acceptance.way].seconds
    return (later * plain + reads) / (later / length * step + drafted_reads)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def expected_speedups(
    measurements: Measurements, num_speculative_tokens: int, concurrency: int, way: Way = "draft"
) -> list[float]:
    """Expected speed-up of each kind and temperature in one way of drafting."""
    own = [acceptance for acceptance in measurements.acceptances if acceptance.way == way]
    return [predict(measurements, acceptance, num_speculative_tokens, concurrency) for acceptance in own]


def overall(measurements: Measurements, num_speculative_tokens: int, concurrency: int, way: Way = "draft") -> float:
    """Expected speed-up in one way of drafting: geometric mean over kinds and temperatures."""
    return _geometric_mean(expected_speedups(measurements, num_speculative_tokens, concurrency, way))


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
        return _geometric_mean([c.speedup if (c := at[n, tokens]).pays(settings) else 1.0 for n in picked])

    numbers = sorted({c.num_speculative_tokens for c in own})
    best = max(map(gain, numbers))
    tokens = next(k for k in numbers if gain(k) >= best * (1 - settings.indifference))
    return {n: tokens if at[n, tokens].pays(settings) else 0 for n in picked}


def _gain(considered: Sequence[Considered], way: Way, settings: ChooseSettings) -> float:
    """Expected speed-up of a way with the best number of tokens at each concurrency: geometric mean over concurrencies."""
    speedup_of = {(c.concurrency, c.num_speculative_tokens): c.speedup for c in considered if c.way == way}
    return _geometric_mean([speedup_of.get(item, 1.0) for item in _picked(considered, way, settings).items()])


def choose(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The better way of drafting, and the fewest draft tokens among the best at each batch size, or none where they gain little."""
    considered = consider(measurements, settings)
    bests = {way: max(item.speedup for item in considered if item.way == way) for way in measurements.ways}
    way = max(measurements.ways, key=lambda way: (_gain(considered, way, settings), bests[way]))
    own = [item for item in considered if item.way == way]
    picked = _picked(considered, way, settings)
    most = max(picked.values()) or None
    splits = [cost_split(measurements.costs, n, way) for n in measurements.concurrencies]
    expected = _expected(measurements, picked, way) if most else None
    reason = _reason(own, picked, expected, settings)
    if most and len(measurements.ways) > 1:
        gains = {found: _gain(considered, found, settings) for found in measurements.ways}
        said = {"draft": "one after another", "parallel": "all in one pass"}
        compared = ", ".join(f"{said[found]} {gain:.2f}x" for found, gain in gains.items())
        reason += f" Draft tokens are proposed {said[way]} (over all batch sizes {compared})."
    return Choice(
        num_speculative_tokens=most, schedule=schedule_of(picked), expected=expected, considered=considered,
        costs=tuple(split for split in splits if split), reason=reason, way=way,
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


def _draft_tokens(count: int) -> str:
    return f"{count} draft token{'' if count == 1 else 's'}"


def _why_not(best: Considered, settings: ChooseSettings) -> str:
    """Why even the best number of draft tokens is not taken."""
    if best.speedup < 1 + settings.min_gain:
        return f"the best would give {best.speedup:.2f}x, at least {1 + settings.min_gain:.2f}x is asked for"
    where = f"{best.worst:.2f}x where it gains least"
    return f"the best would give {best.speedup:.2f}x, but {where}; {settings.floor:.2f}x is the floor"


def _reason(
    considered: Sequence[Considered], picked: dict[int, int], expected: Expected | None, settings: ChooseSettings
) -> str:
    """The decision in one paragraph."""
    bests = {n: max((i for i in considered if i.concurrency == n), key=lambda item: item.speedup) for n in picked}
    if expected is None:
        would = "; ".join(f"{n} at a time: {_why_not(b, settings)}" for n, b in bests.items())
        tokens = next(iter(bests.values())).num_speculative_tokens
        return f"No draft, nor with the best setting, {_draft_tokens(tokens)}. {would[0].upper()}{would[1:]}."
    speedup_of = {(item.concurrency, item.num_speculative_tokens): item.speedup for item in considered}
    parts = []
    for n, tokens in picked.items():
        if tokens:
            parts.append(f"{n} at a time: {_draft_tokens(tokens)}, {speedup_of[n, tokens]:.2f}x plain")
        else:
            parts.append(f"{n} at a time: no draft tokens ({_why_not(bests[n], settings)})")
    return (
        f"Expected, {'; '.join(parts)}. Mean acceptance length {expected.mean_acceptance_length:.2f}. "
        f"No other number of tokens is expected to be more than {settings.indifference:.0%} faster."
    )
