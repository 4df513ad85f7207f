"""Who gets in: the gateway's phase, how many bodies are read at once, and the queue for a place at the engine."""

from __future__ import annotations

import asyncio
import enum
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from server.admission import Admission, Overloaded, Place
from server.errors import Refusal


class Phase(enum.Enum):
    """Where in its life the gateway is."""

    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"
    """Requests are still taken, but ``/ready`` says no, so that whoever spreads the load sends no more."""
    DRAINING = "draining"


REASONS = {
    Phase.STARTING: "the engine is starting; try again later",
    Phase.LEAVING: "the gateway is about to shut down",
    Phase.DRAINING: "the gateway is shutting down; try again later",
}
START_RETRY_S = 5
"""An engine takes long to start; asking every second is of no use."""
MAX_RETRY_S = 60

OVERLOADED = {
    "queue_full": "all places are taken and the queue is full; try again later",
    "too_late": "too many requests are under way for this one to be served in time; try again later",
    "displaced": "the queue is full and this tenant has the most requests in it; try again later",
}


class Door:
    """Lets requests in while the gateway serves and has room.

    Args:
        limit: how many requests may be at the engine at once.
        retry_after_s: what refused clients are told, at least.
        phase: the first phase; whoever supervises the engine moves it on.
        max_queued: how many may wait for a place.
        max_wait_s: how long each may wait.
        max_reading: how many bodies may be read at once.
        clock: the time in seconds.
    """

    def __init__(
        self, limit: int, retry_after_s: int = 1, phase: Phase = Phase.SERVING, max_queued: int = 0,
        max_wait_s: float = 10.0, max_reading: int = 1024, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self.phase = phase
        self.running = 0
        """Requests under way, each counted from its way in to its end, once."""
        self.reading = 0
        """Those of them whose body has not arrived."""
        self.admission = Admission(limit, max_queued, max_wait_s)
        self.cut = asyncio.Event()
        """Set when the requests that still run have had their time: each of them is ended with an error."""
        self._max_reading = max_reading
        self._retry_after_s = retry_after_s
        self._clock = clock

    def shutting_down(self) -> Refusal:
        """What requests are told that came too late, or took too long, for the end."""
        return Refusal(503, REASONS[Phase.DRAINING], Phase.DRAINING.value, retry_after_s=self._retry_after_s)

    def closed(self) -> Refusal | None:
        """The 503 that requests get in this phase; None while they are taken."""
        if self.phase in (Phase.SERVING, Phase.LEAVING):
            return None
        return self.not_ready()

    def not_ready(self) -> Refusal | None:
        """The 503 that ``/ready`` gives in this phase; None while the gateway serves."""
        if self.phase is Phase.SERVING:
            return None
        if self.phase is Phase.DRAINING:
            return self.shutting_down()
        wait_s = max(START_RETRY_S, self._retry_after_s)
        return Refusal(503, REASONS[self.phase], self.phase.value, retry_after_s=wait_s)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Counts a request as under way for as long as the block runs, however it ends.

        Raises:
            Refusal: 503 when the gateway takes no requests.
        """
        closed = self.closed()
        if closed is not None:
            raise closed
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    def check(self, tenant: str) -> None:
        """Refuses before its body is read what could not be served in time.

        Raises:
            Refusal: 503.
        """
        overloaded = self.admission.refusal(tenant)
        if overloaded is not None:
            raise self._overloaded(overloaded)

    @contextmanager
    def read(self) -> Iterator[None]:
        """Holds for as long as a request's body is read.

        Raises:
            Refusal: 503 when too many are being read already.
        """
        if self.reading >= self._max_reading:
            message = f"{self._max_reading} requests are being read, which is the limit; try again later"
            raise Refusal(503, message, "overloaded", retry_after_s=self._retry_after_s)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    @asynccontextmanager
    async def place(self, tenant: str, wait: Callable[[Awaitable[None]], Awaitable[None]]) -> AsyncIterator[Place]:
        """Holds a place at the engine, after waiting for it where need be. Given back once, however the block ends.

        Args:
            tenant: whose turn it takes.
            wait: awaits the turn; only called when there is something to wait for.

        Raises:
            Refusal: 503 when the request cannot be served in time.
        """
        try:
            place = self.admission.ask(tenant, self._clock())
            try:
                if place.waits:
                    await wait(self._turn(place))
                yield place
            finally:
                self.admission.leave(place, self._clock())
        except Overloaded as error:
            raise self._overloaded(error) from None

    async def _turn(self, place: Place) -> None:
        """Waits until a place is given, or refused, or its deadline has passed."""
        told = asyncio.Event()
        place.tell = told.set
        try:
            async with asyncio.timeout(place.deadline_s - self._clock()):
                await told.wait()
        except TimeoutError:
            if place.waits:
                raise Overloaded("too_late", self.admission.expected_wait_s(place.tenant)) from None
        if place.refused is not None:
            raise place.refused

    def _overloaded(self, error: Overloaded) -> Refusal:
        wait_s = min(MAX_RETRY_S, max(self._retry_after_s, math.ceil(error.retry_s)))
        return Refusal(503, OVERLOADED[error.reason], "overloaded", retry_after_s=wait_s)
