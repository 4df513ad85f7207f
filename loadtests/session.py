"""One run of a schedule: who takes which request next, and when all is over. Knows neither locust nor the network."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from loadtests.answers import Outcome
from loadtests.figures import goodput
from loadtests.schedule import Request, level_at, steps_of
from loadtests.settings import Objective, Shape


class Session:
    """Requests that are handed out in their order, and outcomes that come back.

    Args:
        until_s: when nothing more is handed out, in seconds after the beginning; None is never.
        sorts: names of requests that are handed out in queues of their own, to users who ask for one sort only.
        now: seconds on a clock that only goes forward.
    """

    def __init__(
        self, requests: Sequence[Request], until_s: float | None = None, sorts: Iterable[str] = (),
        now: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        split = set(sorts)
        self.requests = tuple(r for r in requests if not split or r.name in split)
        self.outcomes: list[Outcome] = []
        self.under_way = 0
        self._queues: dict[str | None, deque[Request]] = {}
        for request in self.requests:
            self._queues.setdefault(request.name if split else None, deque()).append(request)
        self._until_s, self._now, self.began_s = until_s, now, now()

    def begin(self) -> None:
        """Time starts now: with the first user, not with what comes before."""
        self.began_s = self._now()

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self._now() - self.began_s

    @property
    def over(self) -> bool:
        """Whether nothing more is handed out."""
        return not any(self._queues.values()) or (self._until_s is not None and self.now_s() >= self._until_s)

    @property
    def finished(self) -> bool:
        """Whether, besides, nothing is under way."""
        return self.over and self.under_way == 0

    def take(self, sort: str | None = None) -> Request | None:
        """The next request, of one sort where they are handed out so; None when nothing more is handed out."""
        queue = self._queues.get(sort)
        if not queue or self.over:
            return None
        self.under_way += 1
        return queue.popleft()

    def carry_out(self, request: Request, ask: Callable[[Request, float], Outcome]) -> Outcome:
        """Sends a request that was taken; also one that is broken off counts as ended."""
        try:
            outcome = ask(request, self.began_s)
            self.outcomes.append(outcome)
            return outcome
        finally:
            self.under_way -= 1

    def close(self) -> None:
        """Hands out nothing more."""
        self._queues.clear()


def users_at(shape: Shape, at_s: float) -> int:
    """Users at a time of a closed loop: whole ones, at least one."""
    return max(1, round(level_at(shape, at_s)))


def broken_step(shape: Shape, outcomes: Sequence[Outcome], now_s: float, objective: Objective) -> float | None:
    """The level of the first finished step under which the objective broke; None while it holds.

    A step of which nothing is answered yet when the next one is over, too, has broken it.
    """
    for place, level in enumerate(steps_of(shape)):
        end_s = (place + 1) * shape.every_s
        if end_s > now_s:
            return None
        share = goodput([o for o in outcomes if end_s - shape.every_s <= o.due_s < end_s], objective)
        stuck = share is None and now_s >= end_s + shape.every_s and any(o.due_s < end_s for o in outcomes)
        if stuck or (share is not None and share < objective.share):
            return level
    return None
