"""What happened to one request: filled in while it is relayed, handed to the metrics at its end."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from server.acceptance import AcceptanceRecord, Missing, Usage
from server.kinds import Kind

Clock = Callable[[], float]
Result = TypeVar("Result")

CLIENT_GONE = "client_gone"
STREAM_FAILED = "stream_failed"


@dataclass
class Exchange:
    """One request on its way. Times are readings of ``clock`` in seconds."""

    clock: Clock = time.perf_counter
    arrived_s: float = field(init=False)
    """When its headers were read."""
    admitted_s: float | None = None
    """When its body had arrived."""
    record_due: bool = False
    """Whether the engine was asked for an answer of a kind that carries an acceptance record."""
    kind: Kind = Kind.PLAIN
    """Which kind of output was asked for."""
    prompt_kind: str = ""
    """What its client calls the prompt, of the kinds in the settings, or its route."""
    first_s: float | None = None
    """When the first chunk with content came (streams only)."""
    last_s: float | None = None
    """When the latest chunk with content came."""
    ended_s: float | None = None
    num_chunks: int = 0
    """Chunks with content that have come."""
    tenant: str = "default"
    queued_s: float | None = None
    """Time spent waiting for a place at the engine; None: there was no wait."""
    waited_s: float = 0.0
    """Time spent waiting for the engine or for the client to take what was sent."""
    status: str = ""
    """HTTP status, or `client_gone`, or `stream_failed`; empty until it is settled."""
    num_sequences: int = 1
    served_by: tuple[str, str] | None = None
    """Labels `model` and `draft` of the engine that answered, or was asked last; None before any was."""
    traceparent: str | None = None
    """The client's trace, where traces are made."""
    usage: Usage | None = None
    acceptance: AcceptanceRecord | Missing = Missing.ABSENT

    def __post_init__(self) -> None:
        self.arrived_s = self.clock()

    async def wait(self, awaited: Awaitable[Result]) -> Result:
        """Awaits something that is not the gateway's own work, and books the time as such."""
        started = self.clock()
        try:
            return await awaited
        finally:
            self.waited_s += self.clock() - started

    async def queue(self, turn: Awaitable[Result]) -> Result:
        """Waits for a place at the engine, and books the time as such."""
        started = self.clock()
        try:
            return await self.wait(turn)
        finally:
            self.queued_s = self.clock() - started

    def see_chunk(self) -> float | None:
        """Notes a chunk with content; returns the gap to the one before it in seconds."""
        now, before = self.clock(), self.last_s
        if self.first_s is None:
            self.first_s = now
        self.last_s = now
        self.num_chunks += 1
        return None if before is None else now - before

    def settle(self, status: str) -> None:
        """Notes how and when it ended. The first word counts: who has the last event and then leaves was answered."""
        if not self.status:
            self.status, self.ended_s = status, self.clock()

    @property
    def succeeded(self) -> bool:
        """True for a whole answer."""
        return self.status == "200"

    @property
    def e2e_s(self) -> float | None:
        """From the request's headers to the last byte of its answer."""
        return None if self.ended_s is None else self.ended_s - self.arrived_s

    @property
    def ttft_s(self) -> float | None:
        """From the request's headers to the first chunk with content."""
        return None if self.first_s is None else self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """(e2e - ttft) / (output tokens - 1): of streams of one sequence, where the tokens follow one another."""
        if self.usage is None or self.num_sequences != 1 or self.usage.output_tokens < 2:
            return None
        if self.e2e_s is None or self.ttft_s is None:
            return None
        return (self.e2e_s - self.ttft_s) / (self.usage.output_tokens - 1)

    @property
    def overhead_s(self) -> float | None:
        """The gateway's own time: from the whole body to the end of the answer, without what was waited for."""
        if self.ended_s is None or self.admitted_s is None:
            return None
        return max(0.0, self.ended_s - self.admitted_s - self.waited_s)

    @property
    def missing(self) -> Missing | None:
        """Why the acceptance record is missing; None when it is there or was never due (refused requests)."""
        if isinstance(self.acceptance, AcceptanceRecord) or not self.record_due:
            return None
        if self.status in (CLIENT_GONE, STREAM_FAILED):
            return Missing.CANCELLED if self.status == CLIENT_GONE else Missing.FAILED
        return self.acceptance if self.succeeded else None
