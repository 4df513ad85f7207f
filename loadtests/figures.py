"""Figures from outcomes: throughput, latency, goodput, acceptance, and where the draft stops paying."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.answers import Outcome
from loadtests.schedule import Loop
from loadtests.settings import Objective

SHARES = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class Result:
    """One turn of one server.

    Attributes:
        target: the server's name: ``plain``, ``draft``.
        level: users or arrivals per second, where steady.
        began_s: when it began, in seconds after the run did.
    """

    target: str
    condition: str
    loop: Loop
    level: float | None
    number: int
    began_s: float
    outcomes: tuple[Outcome, ...]
    step: bool = False

    @property
    def wall_s(self) -> float:
        """From the first request's time to the end of the last answer."""
        if not self.outcomes:
            return 0.0
        return max(o.due_s + o.e2e_s for o in self.outcomes) - min(o.due_s for o in self.outcomes)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def percentiles(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 by name; None where there is nothing."""
    return {f"{name}_p{share * 100:.0f}": percentile(values, share) if values else None for share in SHARES}


def goodput(outcomes: Sequence[Outcome], objective: Objective) -> float | None:
    """Share of requests that kept the objective, failed ones being bad; None of no requests."""
    return sum(o.is_good(objective) for o in outcomes) / len(outcomes) if outcomes else None


def acceptance_rate(outcomes: Iterable[Outcome]) -> float | None:
    """Accepted of proposed tokens over all requests: a ratio of sums; None where nothing was proposed."""
    records = [o.speculation for o in outcomes if o.speculation]
    proposed = sum(record.num_draft_tokens for record in records)
    return sum(record.num_accepted_tokens for record in records) / proposed if proposed else None


def mean_acceptance_length(outcomes: Iterable[Outcome]) -> float | None:
    """Tokens per step, the target's own included; None where nothing was drafted."""
    records = [o.speculation for o in outcomes if o.speculation]
    drafts = sum(record.num_drafts for record in records)
    return 1 + sum(record.num_accepted_tokens for record in records) / drafts if drafts else None


def _ratio(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds > 0 else None


def summary(outcomes: Sequence[Outcome], wall_s: float, objective: Objective) -> dict[str, Any]:
    """All figures of some requests.

    Args:
        wall_s: how long the server was asked, turns added up.

    Returns:
        among them ``under_way``: how many requests there were at a time, on average.
    """
    answered = [o for o in outcomes if not o.error]
    tokens = sum(o.completion_tokens or 0 for o in answered)
    good = sum(o.is_good(objective) for o in outcomes)
    return {
        "requests": len(outcomes), "errors": len(outcomes) - len(answered),
        "error_kinds": dict(Counter(o.error for o in outcomes if o.error)),
        "wall_s": wall_s, "under_way": _ratio(math.fsum(o.e2e_s for o in outcomes), wall_s),
        "requests_per_s": _ratio(len(answered), wall_s), "tokens_per_s": _ratio(tokens, wall_s),
        "good_per_s": _ratio(good, wall_s), "goodput": goodput(outcomes, objective), "tokens": tokens,
        **percentiles("ttft_s", [o.ttft_s for o in answered if o.ttft_s is not None]),
        **percentiles("tpot_s", [o.tpot_s for o in answered if o.tpot_s is not None]),
        **percentiles("gap_s", [gap for o in answered for gap in o.gaps_s]),
        **percentiles("e2e_s", [o.e2e_s for o in answered]),
        **percentiles("late_s", [o.late_s for o in outcomes]),
        "acceptance_rate": acceptance_rate(answered), "mean_acceptance_length": mean_acceptance_length(answered),
        "without_usage": sum(o.completion_tokens is None for o in answered),
        "with_record": sum(o.speculation is not None for o in answered),
    }  # fmt: skip


def rows_of(results: Sequence[Result], objective: Objective) -> list[dict[str, Any]]:
    """One row for each condition and server; with ``gain``, the server's over plain's, and its range over turns.

    The gain is that of output tokens per second in a closed loop, and of the median end-to-end time in an open one, where
    the server does not choose how much it is asked.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.condition, result.target), []).append(result)
    rows = []
    for (condition, target), own in groups.items():
        outcomes = [outcome for result in own for outcome in result.outcomes]
        row = {
            "condition": condition,
            "target": target,
            "loop": own[0].loop,
            "level": own[0].level,
            "step": own[0].step,
        }
        row |= summary(outcomes, sum(result.wall_s for result in own), objective)
        row |= _gain(own, groups.get((condition, "plain"), [])) if target != "plain" else {}
        rows.append(row)
    return rows


def speed(results: Sequence[Result]) -> float | None:
    """What gains are ratios of: see ``rows_of``; None where nothing was answered."""
    answered = [outcome for result in results for outcome in result.outcomes if not outcome.error]
    if not answered:
        return None
    if results[0].loop == "open":
        middle = statistics.median(outcome.e2e_s for outcome in answered)
        return 1 / middle if middle > 0 else None
    tokens = sum(outcome.completion_tokens or 0 for outcome in answered)
    return _ratio(tokens, sum(result.wall_s for result in results)) or None


def _gain(own: Sequence[Result], plain: Sequence[Result]) -> dict[str, float | None]:
    def over(mine: Sequence[Result], other: Sequence[Result]) -> float | None:
        fast, slow = speed(mine), speed(other)
        return fast / slow if fast and slow else None

    by_number = {result.number: result for result in plain}
    pairs = [over([r], [by_number[r.number]]) for r in own if r.number in by_number]
    turns = [gain for gain in pairs if gain is not None]
    gain = over(own, plain) if plain else None
    return {"gain": gain, "gain_low": min(turns, default=None), "gain_high": max(turns, default=None)}


def stops_paying(rows: Sequence[dict[str, Any]], loop: Loop, target: str) -> float | None:
    """The lowest level from which on no level's gain is above 1 in all turns; None if the highest one's is, or nothing is known."""
    own = [
        (row["level"], row["gain"] if row.get("gain_low") is None else row["gain_low"])
        for row in rows
        if (row["loop"], row["target"], row["step"]) == (loop, target, False)
        and row["level"] is not None and row.get("gain") is not None
    ]  # fmt: skip
    found = None
    for level, gain in sorted(own, reverse=True):
        if gain > 1:
            break
        found = level
    return found


def held(rows: Sequence[dict[str, Any]], target: str, objective: Objective) -> float | None:
    """The highest step that a server held: every step up to it kept the objective; None if it did not hold the first."""
    found = None
    for row in sorted((r for r in rows if r["step"] and r["target"] == target), key=lambda r: r["level"]):
        if row["goodput"] is None or row["goodput"] < objective.share:
            break
        found = row["level"]
    return found


def acceptance_over_time(results: Sequence[Result], target: str, bins: int = 24) -> list[tuple[float, float]]:
    """Acceptance rate by when answers ended, as (seconds after the run began, rate); times without drafts are left out."""
    ended = [(r.began_s + o.due_s + o.e2e_s, o) for r in results if r.target == target for o in r.outcomes]
    if not ended:
        return []
    first, last = min(at for at, _ in ended), max(at for at, _ in ended)
    width = max((last - first) / bins, 1e-9)
    groups: dict[int, list[Outcome]] = {}
    for at, outcome in ended:
        groups.setdefault(min(bins - 1, int((at - first) / width)), []).append(outcome)
    rates = ((first + (place + 0.5) * width, acceptance_rate(group)) for place, group in sorted(groups.items()))
    return [(at, rate) for at, rate in rates if rate is not None]


def busiest(results: Sequence[Result]) -> dict[str, float]:
    """The most requests and the most chunks that one second of any turn saw; turns do not overlap."""
    requests: Counter[tuple[int, int]] = Counter()
    chunks: Counter[tuple[int, int]] = Counter()
    for place, result in enumerate(results):
        for o in result.outcomes:
            requests[place, int(o.sent_s)] += 1
            chunks.update((place, int(o.due_s + at_s)) for at_s in o.chunk_s)
    return {
        "requests_per_s": float(max(requests.values(), default=0)),
        "chunks_per_s": float(max(chunks.values(), default=0)),
    }
