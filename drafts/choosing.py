"""Chooses how many tokens the draft proposes, or that no draft pays: a pure function of the measurements.

For K = num_speculative_tokens (methods of the field, e.g. arXiv 2211.17192, with measured costs instead of assumed):

    tau(K)   = 1 + sum_{j=1..K} P(first j draft tokens accepted)        mean acceptance length, bonus token included
    step(K)  = base + slope * K                                         from steps timed at two values of K
    speed-up = tau(K) * plain step / step(K)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from stages.errors import InputError
from stages.settings import Settings


class StepCost(Settings):
    """Seconds of one engine step at one concurrency; ``num_speculative_tokens`` 0 is plain decoding."""

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


class Measurements(Settings):
    """What ``understudy measure`` found in the real engine on this machine.

    Attributes:
        enforce_eager: how the engines were started; the pair is served the same way.
    """

    concurrency: int = Field(ge=1)
    enforce_eager: bool | None = None
    costs: tuple[StepCost, ...]
    acceptances: tuple[Acceptance, ...]


class ChooseSettings(Settings):
    """What decides the choice.

    Attributes:
        min_gain: no draft is chosen when the expected speed-up is below 1 + this.
        indifference: the fewest draft tokens are taken whose expected speed-up is within this share of the best one's.
            Fewer tokens cost less when requests share a step, and such a difference is below what measuring resolves.
        max_tokens: the largest num_speculative_tokens to consider; what was measured bounds it too.
    """

    min_gain: float = Field(default=0.03, ge=0)
    indifference: float = Field(default=0.02, ge=0, lt=1)
    max_tokens: int = Field(default=8, ge=1)


class Expected(Settings):
    """What the chosen setting should give, so that the gateway can say when reality drifts from it."""

    speedup: float
    acceptance_rate: float
    mean_acceptance_length: float


class Choice(Settings):
    """The decision; ``num_speculative_tokens`` is None when no draft pays.

    Attributes:
        predicted: expected speed-up for each considered K, as (K, speed-up).
    """

    num_speculative_tokens: int | None
    expected: Expected | None
    predicted: tuple[tuple[int, float], ...]
    reason: str


def acceptance_length(histogram: Sequence[int], num_speculative_tokens: int) -> float:
    """Mean acceptance length (bonus token included) that K tokens would have had.

    Sequential drafting proposes token j + 1 without knowing K, so the first K positions of a longer run count as is.
    """
    steps = sum(histogram)
    if steps == 0:
        raise InputError("measurements: an acceptance histogram has no steps; measure with more prompts")
    accepted = sum(min(j, num_speculative_tokens) * count for j, count in enumerate(histogram))
    return 1 + accepted / steps


def step_seconds(costs: Sequence[StepCost], num_speculative_tokens: int) -> float:
    """Seconds of a speculative step at K: on the line through the smallest and the largest measured K.

    Never less than a plain step, which a noisy line would otherwise promise at small K.
    """
    measured = sorted((c.num_speculative_tokens, c.seconds) for c in costs if c.num_speculative_tokens > 0)
    if len({k for k, _ in measured}) < 2:
        raise InputError("measurements: speculative steps at two different num_speculative_tokens are needed")
    (k0, s0), (k1, s1) = measured[0], measured[-1]
    return max(s0 + (s1 - s0) * (num_speculative_tokens - k0) / (k1 - k0), plain_seconds(costs))


def plain_seconds(costs: Sequence[StepCost]) -> float:
    """Seconds of a plain step."""
    for cost in costs:
        if cost.num_speculative_tokens == 0:
            return cost.seconds
    raise InputError("measurements: the plain step (num_speculative_tokens 0) is missing")


def predict(measurements: Measurements, num_speculative_tokens: int) -> tuple[float, float]:
    """(speed-up, mean acceptance length) at K: geometric and arithmetic mean over kinds and temperatures."""
    lengths = [acceptance_length(a.histogram, num_speculative_tokens) for a in measurements.acceptances]
    ratio = plain_seconds(measurements.costs) / step_seconds(measurements.costs, num_speculative_tokens)
    speedup = math.exp(sum(math.log(length * ratio) for length in lengths) / len(lengths))
    return speedup, sum(lengths) / len(lengths)


def choose(measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The smallest K whose predicted speed-up is the highest but for ``indifference``, or none if it gains too little."""
    if not measurements.acceptances:
        raise InputError("measurements: no acceptance was measured")
    longest = min(len(a.histogram) - 1 for a in measurements.acceptances)
    candidates = range(1, min(longest, settings.max_tokens) + 1)
    predicted = tuple((k, predict(measurements, k)[0]) for k in candidates)
    enough = max(speedup for _, speedup in predicted) * (1 - settings.indifference)
    best, speedup = next(pair for pair in predicted if pair[1] >= enough)
    length = predict(measurements, best)[1]
    figures = f"{speedup:.2f}x plain at mean acceptance length {length:.2f} (concurrency {measurements.concurrency})"
    if speedup < 1 + settings.min_gain:
        asked = f"at least {1 + settings.min_gain:.2f}x is asked for"
        reason = f"No draft: the best setting, {best} draft tokens, would give {figures}; {asked}."
        return Choice(num_speculative_tokens=None, expected=None, predicted=predicted, reason=reason)
    expected = Expected(speedup=speedup, acceptance_rate=(length - 1) / best, mean_acceptance_length=length)
    reason = (
        f"{best} draft tokens per step: expected {figures}; "
        f"no number of tokens from 1 to {candidates[-1]} is expected to be more than {settings.indifference:.0%} faster."
    )
    return Choice(num_speculative_tokens=best, expected=expected, predicted=predicted, reason=reason)
