"""Two drafts on live traffic, compared request by request in constant memory: pure accumulators.

Requests are the units: the tokens of one request are not independent of one another, so intervals come from the spread
between requests.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, Self

from server.acceptance import AcceptanceRecord
from server.exchange import Exchange
from server.kinds import TOTAL, Kind

Z = 1.959964
"""Two-sided 95 % of the normal distribution."""

MIN_REQUESTS = 20
"""Fewer requests get no interval: the normal approximation is no good there."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error and 95 % interval; None where there are too few requests."""

    value: float
    error: float | None
    requests: int

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""
        return None if self.error is None else self.value - Z * self.error

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""
        return None if self.error is None else self.value + Z * self.error

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "requests": self.requests}


@dataclass
class RatioSums:
    """What is needed of requests' pairs (x, y) for the ratio of sums y / x and its standard error; x = 1 makes it a mean."""

    n: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """Takes one request in."""
        self.n += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.yy += y * y
        self.xy += x * y

    def __add__(self, other: Self) -> RatioSums:
        return RatioSums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def estimate(self, offset: float = 0.0) -> Estimate | None:
        """``offset`` + y / x; the error by linearisation: the spread of y - ratio * x between requests."""
        if not self.x:
            return None
        ratio = self.y / self.x
        if self.n < MIN_REQUESTS:
            return Estimate(offset + ratio, None, self.n)
        residual = max(0.0, self.yy - 2 * ratio * self.xy + ratio * ratio * self.xx)
        return Estimate(offset + ratio, math.sqrt(residual * self.n / (self.n - 1)) / self.x, self.n)


def difference(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """Second minus first, of independent requests."""
    if first is None or second is None:
        return None
    known = first.error is not None and second.error is not None
    error = math.hypot(first.error or 0.0, second.error or 0.0) if known else None
    return Estimate(second.value - first.value, error, min(first.requests, second.requests))


@dataclass
class Arm:
    """What was seen of one pool, kind of output and kind of prompt."""

    acceptance: RatioSums
    tpot: RatioSums

    @classmethod
    def empty(cls) -> Arm:
        """Nothing seen yet."""
        return cls(RatioSums(), RatioSums())

    def __add__(self, other: Self) -> Arm:
        return Arm(self.acceptance + other.acceptance, self.tpot + other.tpot)

    def estimates(self) -> dict[str, Estimate | None]:
        """The figures that arms are compared by."""
        return {"mean_acceptance_length": self.acceptance.estimate(1.0), "tpot_s": self.tpot.estimate()}


BETTER_WHEN_HIGHER = {"mean_acceptance_length": True, "tpot_s": False}


def verdict(figure: str, found: Estimate | None) -> str:
    """What a difference says: ``better`` and ``worse`` only where the interval leaves zero out."""
    if found is None or found.low is None or found.high is None:
        return "too few requests"
    if found.low <= 0 <= found.high:
        return "no difference seen"
    return "better" if (found.value > 0) is BETTER_WHEN_HIGHER[figure] else "worse"


class Comparison:
    """All arms by pool, kind of output and kind of prompt."""

    def __init__(self) -> None:
        self._arms: dict[tuple[str, Kind, str], Arm] = {}

    def see(self, pool: str, exchange: Exchange) -> None:
        """Takes a finished request in. Requests without a record add none; those that were no stream have no time per token."""
        arm = self._arms.setdefault((pool, exchange.kind, exchange.prompt_kind), Arm.empty())
        record = exchange.acceptance
        if isinstance(record, AcceptanceRecord) and record.num_drafts:
            arm.acceptance.add(record.num_drafts, record.num_accepted_tokens)
        if exchange.succeeded and exchange.tpot_s is not None:
            arm.tpot.add(1.0, exchange.tpot_s)

    def rows(self, main: Collection[str], canary: Collection[str]) -> list[dict[str, Any]]:
        """Both sides' figures and their differences, for each kind of output and of prompt that was seen, and for all together.

        Where only one kind was seen, it has no row of its own beside that of all.

        Args:
            main: names of the pools that the canary is compared with.
            canary: names of the canary's pools.
        """
        seen = [(kind, prompt) for pool, kind, prompt in self._arms if pool in (*main, *canary)]
        outputs = [kind.value for kind in Kind if any(kind is one for one, _ in seen)]
        prompts = sorted({prompt for _, prompt in seen if prompt})
        named = [("output", kind) for kind in outputs if len(outputs) > 1]
        named += [("prompt", kind) for kind in prompts if len(prompts) > 1]
        return [self._row(of, name, main, canary) for of, name in [*named, ("all", TOTAL)] if seen]

    def _row(self, of: str, name: str, main: Collection[str], canary: Collection[str]) -> dict[str, Any]:
        first, second = (self._sum(pools, of, name).estimates() for pools in (main, canary))
        row: dict[str, Any] = {"kind": name, "of": of}
        for figure in first:
            found = difference(first[figure], second[figure])
            parts = {"main": first[figure], "canary": second[figure], "difference": found}
            row[figure] = {key: part and part.as_dict() for key, part in parts.items()}
            row[figure]["verdict"] = verdict(figure, found)
        return row

    def _sum(self, pools: Collection[str], of: str, name: str) -> Arm:
        total = Arm.empty()
        for (pool, kind, prompt), arm in self._arms.items():
            if pool in pools and {"output": kind.value, "prompt": prompt}.get(of, name) == name:
                total = total + arm
        return total
