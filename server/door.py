"""Who gets in: one synchronous decision from the gateway's phase and the number of requests under way."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Refusal


class Phase(enum.Enum):
    """Where in its life the gateway is."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


REASONS = {
    Phase.STARTING: "the engine is starting; try again later",
    Phase.DRAINING: "the gateway is shutting down; try again later",
}
START_RETRY_S = 5
"""An engine takes long to start; asking every second is of no use."""


class Door:
    """Lets requests in while the gateway serves and has room.

    Args:
        limit: how many requests may be under way.
        retry_after_s: what refused clients are told.
        phase: the first phase; whoever supervises the engine moves it on.
    """

    def __init__(self, limit: int, retry_after_s: int = 1, phase: Phase = Phase.SERVING):
        self.phase = phase
        self.running = 0
        """Requests under way, each counted from its way in to its end, once."""
        self.cut = asyncio.Event()
        """Set when the requests that still run have had their time: each of them is ended with an error."""
        self._limit = limit
        self._retry_after_s = retry_after_s

    def shutting_down(self) -> Refusal:
        """What requests are told that came too late, or took too long, for the end."""
        return Refusal(503, REASONS[Phase.DRAINING], Phase.DRAINING.value, retry_after_s=self._retry_after_s)

    def closed(self) -> Refusal | None:
        """The 503 that requests get in this phase; None while the gateway serves."""
        if self.phase is Phase.SERVING:
            return None
        if self.phase is Phase.DRAINING:
            return self.shutting_down()
        wait_s = max(START_RETRY_S, self._retry_after_s)
        return Refusal(503, REASONS[self.phase], self.phase.value, retry_after_s=wait_s)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Holds a place for as long as the block runs, however it ends.

        Raises:
            Refusal: 503 when the gateway does not serve, 429 when all places are taken.
        """
        closed = self.closed()
        if closed is not None:
            raise closed
        if self.running >= self._limit:
            message = f"{self._limit} requests are under way, which is the limit; try again later"
            raise Refusal(429, message, "too_many_requests", retry_after_s=self._retry_after_s)
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
