"""Budgets per minute and concurrent requests of one tenant: pure, with the time passed in.

A budget holds for every minute, not only on average: what was admitted in any 60 seconds is at most the limit. That is
why it is a sliding window and not a bucket, which lets through twice its size in the minute after a rest.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass

MINUTE_S = 60.0
SLOT_S = 0.1
"""Amounts within one slot are kept as one and leave together, when the last of them may: so memory is bounded."""
NEVER = math.inf


class Limit(enum.Enum):
    """What a tenant has run out of."""

    REQUESTS = "requests per minute"
    TOKENS = "tokens per minute"
    CONCURRENT = "concurrent requests"


@dataclass
class Exceeded(Exception):
    """A request that a limit does not let through."""

    limit: Limit
    allowed: int
    asked: int
    wait_s: float
    """When to come back; `NEVER` for a request that is larger than the whole budget."""


@dataclass(eq=False)
class Slot:
    """What was taken in a tenth of a second."""

    opened_s: float
    amount: int = 0
    gone: bool = False

    @property
    def ends_s(self) -> float:
        """When the last of it is a minute old."""
        return self.opened_s + SLOT_S + MINUTE_S


class Window:
    """What was taken in the last minute."""

    def __init__(self, limit: int):
        self.limit = limit
        self.used = 0
        self._slots: deque[Slot] = deque()

    def wait_s(self, amount: int, now: float) -> float:
        """How long until ``amount`` fits: 0 when it does, `NEVER` when it never will."""
        if amount > self.limit:
            return NEVER
        self._forget(now)
        missing = self.used + amount - self.limit
        for slot in self._slots:
            if missing <= 0:
                break
            missing -= slot.amount
            wait_s = slot.ends_s - now
            if missing <= 0:
                return wait_s
        return 0.0

    def take(self, amount: int, now: float) -> Slot:
        """Books an amount, whether it fits or not; returns where, for `change`."""
        self._forget(now)
        if not self._slots or now >= self._slots[-1].opened_s + SLOT_S:
            self._slots.append(Slot(now))
        slot = self._slots[-1]
        slot.amount += amount
        self.used += amount
        return slot

    def change(self, slot: Slot, less: int, now: float) -> None:
        """Takes ``less`` (at least 0) off an earlier booking; of one that is a minute old nothing is left to change."""
        self._forget(now)
        if not slot.gone:
            slot.amount -= less
            self.used -= less

    def remaining(self, now: float) -> int:
        """What fits now."""
        self._forget(now)
        return max(0, self.limit - self.used)

    def reset_s(self, now: float) -> float:
        """How long until the whole limit is there again."""
        self._forget(now)
        last = next((slot for slot in reversed(self._slots) if slot.amount), None)
        return 0.0 if last is None else last.ends_s - now

    def _forget(self, now: float) -> None:
        while self._slots and self._slots[0].ends_s <= now:
            slot = self._slots.popleft()
            slot.gone = True
            self.used -= slot.amount


class Booking:
    """What one request holds of its tenant's budget. Ends once, however often it is told to."""

    def __init__(self, budget: Budget, now: float):
        self.reserved = 0
        """Tokens set aside."""
        self.budget = budget
        self._requests, self._tokens = budget.requests, budget.tokens  # these, whatever becomes of the limits
        self._request = self._requests.take(1, now) if self._requests is not None else None
        self._reserve: Slot | None = None
        self._ended = False

    def reserve(self, tokens: int, now: float) -> None:
        """Sets aside the tokens that the request declares.

        Raises:
            Exceeded: they do not fit; nothing is set aside.
        """
        if self._tokens is not None:
            _check(self._tokens, tokens, Limit.TOKENS, now)
            self._reserve, self.reserved = self._tokens.take(tokens, now), tokens

    def end(self, used_tokens: int | None, counts: bool, now: float) -> None:
        """Gives back the place, and what was set aside and not used.

        Args:
            used_tokens: what it took in the end; more than was declared is booked on top. None: not known, what was
                set aside counts.
            counts: whether it counts as one of the requests per minute.
            now: the time.
        """
        if self._ended:
            return
        self._ended = True
        self.budget.running -= 1
        if self._request is not None and self._requests is not None and not counts:
            self._requests.change(self._request, 1, now)
        if self._reserve is not None and self._tokens is not None and used_tokens is not None:
            self._tokens.change(self._reserve, max(0, self.reserved - used_tokens), now)
            if used_tokens > self.reserved:
                self._tokens.take(used_tokens - self.reserved, now)


def _check(window: Window, amount: int, limit: Limit, now: float) -> None:
    wait_s = window.wait_s(amount, now)
    if wait_s:
        raise Exceeded(limit, window.limit, amount, wait_s)


class Budget:
    """One tenant's. Its limits may change while requests hold bookings of it."""

    def __init__(self) -> None:
        self.requests: Window | None = None
        self.tokens: Window | None = None
        self.concurrent: int | None = None
        self.running = 0

    def allow(self, requests: int | None, tokens: int | None, concurrent: int | None) -> None:
        """Sets the limits; None is none. What was used of a limit that stays is not forgotten."""
        self.requests = _resized(self.requests, requests)
        self.tokens = _resized(self.tokens, tokens)
        self.concurrent = concurrent

    def enter(self, now: float) -> Booking:
        """Counts a request in.

        Raises:
            Exceeded: too many are under way, or came within the minute; nothing is counted.
        """
        if self.concurrent is not None and self.running >= self.concurrent:
            raise Exceeded(Limit.CONCURRENT, self.concurrent, self.running + 1, 0.0)
        if self.requests is not None:
            _check(self.requests, 1, Limit.REQUESTS, now)
        self.running += 1
        return Booking(self, now)


def _resized(window: Window | None, limit: int | None) -> Window | None:
    if limit is None:
        return None
    if window is None:
        return Window(limit)
    window.limit = limit
    return window
