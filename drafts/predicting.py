"""Predicts the speed-up that a draft gives with K draft tokens.

A pure function of measurements. For K = num_speculative_tokens, n requests at a time and answers of L further tokens (arXiv
2211.17192, with measured costs instead of assumed):

    tau(K)   = 1 + sum_{j=1..K} P(first j draft tokens accepted)        mean acceptance length, bonus token included
    step(K)  = base + slope * K                                         from steps timed at two values of K
    speed-up = (L * plain step + reads(n, r)) / (L / tau(K) * step(K) + reads(n, r'))
    reads(n, r) = r + (n - 1) * max(0, r - plain step alone)

L, r and r' are those of the kind of prompt; r and r' are the times to the first token of one request alone, without and with a
draft, which has to read the prompt too. While an answer is made, the prompts of the n - 1 others are read, in steps that all of
them share: only what a prompt adds to a step counts. With K = 0 nothing is drafted: our
own proposer then does nothing, but vLLM's runs the draft over the new tokens all the same, which is timed by itself. Where the
costs of a step come from, in plain steps: v, a step that checks K + 1 tokens but drafts for free, and c, a draft token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from drafts.measurements import ALL, Acceptance, CostSplit, Measurements, StepCost, Way
from stages.errors import InputError


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


def idles(costs: Sequence[StepCost], concurrency: int, way: Way = "draft") -> bool:
    """Whether a step in which a loaded draft proposes nothing was timed, because it is not free."""
    return any(cost.num_speculative_tokens == 0 for cost in _costs(costs, way, concurrency))


def step_seconds(costs: Sequence[StepCost], num_speculative_tokens: int, concurrency: int, way: Way = "draft") -> float:
    """Seconds of a step with K draft tokens: on the line through the smallest and the largest measured K from 1 up.

    Never less than a plain step, which a noisy line would otherwise promise at small K. No draft tokens cost what was timed, and
    nothing where it was not.
    """
    plain, measured = plain_cost(costs, concurrency).seconds, _costs(costs, way, concurrency)
    if num_speculative_tokens == 0:
        return max([plain, *(cost.seconds for cost in measured if cost.num_speculative_tokens == 0)])
    steps = [(cost.num_speculative_tokens, cost.seconds) for cost in measured if cost.num_speculative_tokens]
    if len({k for k, _ in steps}) < 2:
        raise InputError(
            f"measurements: steps at two different num_speculative_tokens are needed at concurrency {concurrency}"
        )
    (k0, s0), (k1, s1) = steps[0], steps[-1]
    return max(plain, s0 + (s1 - s0) * (num_speculative_tokens - k0) / (k1 - k0))


def cost_split(costs: Sequence[StepCost], concurrency: int, way: Way = "draft") -> CostSplit | None:
    """v and c at the largest measured K; None where no step with free draft tokens was timed."""
    verify, draft = _costs(costs, "verify", concurrency), _costs(costs, way, concurrency)
    if not verify or not draft:
        return None
    plain, checked, drafted = plain_cost(costs, concurrency).seconds, verify[-1], draft[-1]
    tokens = drafted.num_speculative_tokens
    low, middle, high = (
        (seconds - checked.seconds) / tokens / plain for seconds in (drafted.low, drafted.seconds, drafted.high)
    )
    steps = tuple(step_seconds(costs, k, concurrency, way) / plain for k in range(1, tokens + 1))
    return CostSplit(
        concurrency=concurrency, num_speculative_tokens=tokens, way=way, verify=checked.seconds / plain,
        verify_low=checked.low / plain, verify_high=checked.high / plain, draft=middle, draft_low=low, draft_high=high,
        steps=steps,
    )  # fmt: skip


def answered_sooner(later: float, length: float, plain: tuple[float, float], drafted: tuple[float, float]) -> float:
    """The speed-up of answers with ``later`` tokens after the first, where a step brings ``length`` tokens.

    Args:
        plain: seconds of a plain step, and until the first token.
        drafted: likewise with a draft.
    """
    return (later * plain[0] + plain[1]) / (later / length * drafted[0] + drafted[1])


def predict(measurements: Measurements, acceptance: Acceptance, num_speculative_tokens: int, concurrency: int) -> float:
    """Expected speed-up of one kind of traffic."""
    if num_speculative_tokens == 0 and not idles(measurements.costs, concurrency, acceptance.way):
        return 1.0
    plain = plain_cost(measurements.costs, concurrency).seconds
    step = step_seconds(measurements.costs, num_speculative_tokens, concurrency, acceptance.way)
    length = acceptance_length(acceptance.histogram, num_speculative_tokens)
    first = {found.method: found for found in measurements.first_tokens if found.kind in (acceptance.kind, ALL)}
    if "plain" not in first or acceptance.way not in first:
        return length * plain / step
    alone = plain_cost(measurements.costs, min(measurements.concurrencies)).seconds
    reads, drafted_reads = (
        first[way].seconds + (concurrency - 1) * max(0.0, first[way].seconds - alone)
        for way in ("plain", acceptance.way)
    )
    return answered_sooner(first["plain"].later_tokens, length, (plain, reads), (step, drafted_reads))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of speed-ups: of 2x and 0.5x it is 1x."""
    return math.exp(sum(map(math.log, values)) / len(values))


def expected_speedups(
    measurements: Measurements, num_speculative_tokens: int, concurrency: int, way: Way = "draft"
) -> list[float]:
    """Expected speed-up of each kind and temperature in one way of drafting."""
    own = [acceptance for acceptance in measurements.acceptances if acceptance.way == way]
    return [predict(measurements, acceptance, num_speculative_tokens, concurrency) for acceptance in own]


def overall(measurements: Measurements, num_speculative_tokens: int, concurrency: int, way: Way = "draft") -> float:
    """Expected speed-up in one way of drafting: geometric mean over kinds and temperatures."""
    return geometric_mean(expected_speedups(measurements, num_speculative_tokens, concurrency, way))
