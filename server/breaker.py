"""A breaker for one engine: after several failures in a row it lets nobody through, then one at a time, then everybody.

Pure: readings of the clock are passed in. What counts as a failure is decided by who asks (a connection that failed, a
time-out, a status of 500 or above, a refusal of the gateway's key; never another 4xx or a 501, which show that the engine works).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class BreakerState(enum.Enum):
    """What a breaker does with the next request; the values are those of the gauge."""

    CLOSED = 0
    """Lets everybody through."""
    HALF_OPEN = 1
    """Lets one through, which decides: for the engine by the head of its answer, against it by a failure."""
    OPEN = 2
    """Lets nobody through."""


@dataclass(frozen=True)
class BreakerRule:
    """When a breaker opens, and for how long."""

    failures: int = 5
    """In a row, to open it."""
    open_s: float = 1.0
    """How long it stays open the first time; twice as long after each trial that fails."""
    max_open_s: float = 30.0

    def wait_s(self, times: int) -> float:
        """How long it stays open when it opened for the ``times``-th time in a row (from 1)."""
        return float(min(self.max_open_s, self.open_s * 2 ** min(times - 1, 60)))


class Breaker:
    """Counts failures in a row. Each request takes a ticket at its begin and hands it back with its verdict, once.

    A verdict from before the breaker last changed its state says nothing of the engine now and is ignored.

    Args:
        rule: when it opens, and for how long.
    """

    def __init__(self, rule: BreakerRule):
        self._rule = rule
        self._failures = 0
        self._times_opened = 0
        self._opened_s: float | None = None
        self._trial: int | None = None
        self._ticket = self._oldest = 0

    def state(self, now_s: float) -> BreakerState:
        """What it does with a request that comes now."""
        opened_s = self._opened_s  # once: metrics are read in another thread
        if opened_s is None:
            return BreakerState.CLOSED
        over = now_s - opened_s >= self._rule.wait_s(self._times_opened)
        return BreakerState.HALF_OPEN if over else BreakerState.OPEN

    def admits(self, now_s: float) -> bool:
        """Whether a request that comes now is let through."""
        state = self.state(now_s)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and self._trial is None)

    def begin(self, now_s: float) -> int:
        """Lets a request through and gives it a ticket; in the half-open state it is the trial."""
        self._ticket += 1
        if self.state(now_s) is BreakerState.HALF_OPEN and self._trial is None:
            self._trial = self._ticket
        return self._ticket

    def answer(self, ticket: int) -> None:
        """The head of an answer came: that closes it after a trial, however long the answer is; its end counts as any other's."""
        if ticket == self._trial:
            self.reset()
            self._oldest = ticket

    def succeed(self, ticket: int) -> None:
        """The engine answered to the end."""
        self.answer(ticket)
        if self._counts(ticket):
            self._failures = 0

    def fail(self, ticket: int, now_s: float) -> None:
        """The engine failed."""
        if not self._counts(ticket):
            return
        self._failures += 1
        if ticket == self._trial or self._failures >= self._rule.failures:
            self._times_opened += 1
            self._opened_s = now_s
            self._start_over()

    def give_up(self, ticket: int) -> None:
        """The request ended without a verdict: its client left."""
        if ticket == self._trial:
            self._trial = None

    def reset(self) -> None:
        """Closes it: a trial succeeded, or the engine is another one than before."""
        self._opened_s, self._times_opened = None, 0
        self._start_over()

    def _start_over(self) -> None:
        self._failures, self._trial, self._oldest = 0, None, self._ticket + 1

    def _counts(self, ticket: int) -> bool:
        """Whether the verdict is on the engine as it is now: after it opened, only the trial's is."""
        return ticket >= self._oldest and (self._opened_s is None or ticket == self._trial)
