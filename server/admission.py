"""Who is served now, who waits, and who is refused: one synchronous decision, with the time passed in.

Places are given in turn: every tenant with waiting requests gets one, then the next tenant. So a request waits for at
most as many requests of each other tenant as of its own. Whoever calls does the waiting, and tells when a place is left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

RECENT = 0.1
"""Weight of the latest request in the estimate of the time that requests hold their places."""


@dataclass
class Overloaded(Exception):
    """A request that cannot be served in time."""

    reason: str
    """``queue_full``, ``too_late`` (it would wait too long), or ``displaced`` (by a tenant with fewer waiting)."""
    retry_s: float
    """When it is worth trying again."""


def _nobody() -> None:
    """Nobody waits for news of this place yet."""


@dataclass(eq=False)
class Place:
    """One request's, from asking to leaving."""

    tenant: str
    deadline_s: float
    """Until when it may wait."""
    entered_s: float | None = None
    refused: Overloaded | None = None
    left: bool = False
    served: bool = True
    """Whether its request was carried out: how long a refused one held its place says nothing of the next."""
    tell: Callable[[], None] = field(default=_nobody)
    """Called when a waiting request is let in or refused."""

    @property
    def waits(self) -> bool:
        """True while it is in the queue."""
        return self.entered_s is None and not self.left


class Admission:
    """Gives places to requests.

    Args:
        max_running: how many may hold a place.
        max_queued: how many may wait.
        max_wait_s: how long each may wait.
    """

    def __init__(self, max_running: int, max_queued: int, max_wait_s: float):
        self.running = 0
        self.queued = 0
        self.service_s: float | None = None
        """Estimate of the time that a request holds its place; None before the first has left."""
        self.max_running = max_running
        self.max_queued = max_queued
        self.max_wait_s = max_wait_s
        self._queues: dict[str, deque[Place]] = {}
        """Never empty ones; the first is the next in turn."""

    def ask(self, tenant: str, now: float) -> Place:
        """A place, or a place in the queue; either must be left.

        Raises:
            Overloaded: the request would not be served in time.
        """
        place = Place(tenant, now + self.max_wait_s)
        if self.running < self.max_running and not self.queued:
            self._enter(place, now)
            return place
        refusal = self.refusal(tenant)
        if refusal is not None:
            raise refusal
        if self.queued >= self.max_queued:
            self._displace()
        self._queues.setdefault(tenant, deque()).append(place)
        self.queued += 1
        self._let_in(now)
        return place

    def refusal(self, tenant: str) -> Overloaded | None:
        """Why a request that came now would be refused; None when it would be served in time."""
        if self.running < self.max_running and not self.queued:
            return None
        wait_s = self.expected_wait_s(tenant)
        if wait_s > self.max_wait_s:
            return Overloaded("too_late", wait_s - self.max_wait_s)
        if self.queued >= self.max_queued and self._longest <= self.queued_of(tenant) + 1:
            return Overloaded("queue_full", self._step_s)
        return None

    def leave(self, place: Place, now: float) -> None:
        """Frees a place or takes a request out of the queue; harmless when done twice."""
        if place.left:
            return
        place.left = True
        if place.entered_s is None:
            self._drop(place)
        else:
            self.running -= 1
            if place.served:
                self._learn(now - place.entered_s)
        self._let_in(now)

    def expected_wait_s(self, tenant: str) -> float:
        """How long a request that came now would wait, from recent service times; 0 when nothing is known."""
        own = len(self._queues.get(tenant, ()))
        others = sum(min(len(queue), own + 1) for name, queue in self._queues.items() if name != tenant)
        return (own + others + 1) * self._step_s

    def queued_of(self, tenant: str) -> int:
        """How many of a tenant's requests wait."""
        return len(self._queues.get(tenant, ()))

    @property
    def _step_s(self) -> float:
        """The time between two places that become free."""
        return (self.service_s or 0.0) / self.max_running

    def _learn(self, service_s: float) -> None:
        before = self.service_s
        self.service_s = service_s if before is None else before + RECENT * (service_s - before)

    def _enter(self, place: Place, now: float) -> None:
        place.entered_s = now
        self.running += 1

    def _let_in(self, now: float) -> None:
        while self.running < self.max_running and self._queues:
            tenant, queue = next(iter(self._queues.items()))
            place = queue.popleft()
            self.queued -= 1
            del self._queues[tenant]
            if queue:
                self._queues[tenant] = queue  # at the end: the others come first
            if place.deadline_s < now:
                self._refuse(place, "too_late")
            else:
                self._enter(place, now)
                place.tell()

    @property
    def _longest(self) -> int:
        """How many wait of the tenant that has the most waiting."""
        return max(map(len, self._queues.values()), default=0)

    def _displace(self) -> None:
        """Makes room in a full queue: the latest request of the tenant that has the most waiting goes."""
        place = max(self._queues.values(), key=len).pop()
        self.queued -= 1
        self._refuse(place, "displaced")

    def _refuse(self, place: Place, reason: str) -> None:
        place.left = True
        place.refused = Overloaded(reason, self._step_s)
        place.tell()

    def _drop(self, place: Place) -> None:
        queue = self._queues[place.tenant]
        queue.remove(place)
        self.queued -= 1
        if not queue:
            del self._queues[place.tenant]
