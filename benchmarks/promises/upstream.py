"""The engine's stand-in: every request says in its field ``bench`` how it wants to be answered, and its fate is noted.

The gateway passes unknown fields on, so the script arrives here. ``python -m benchmarks.promises.upstream PORT`` runs it as a
process of its own, which can be killed.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.gateway_streamer import Plan, Streamer, answered, serve, usage


@dataclass(frozen=True)
class Script:
    """How one request is to be answered."""

    id: int
    chunks: int = 8
    """Of a stream, the first one without text; of an answer in one piece, its tokens. At least 2."""
    gap_s: float = 0.0
    wait_s: float = 0.0
    """Before the first byte."""
    fault: str = ""
    """``500`` answers with that status, ``cut`` breaks off before the end."""

    def fields(self) -> dict[str, Any]:
        """What goes into the request's body."""
        return {"bench": asdict(self)}


PLAN = functools.lru_cache(maxsize=4096)(Plan)
FAILED = answered(b'{"error":{"message":"out of memory"}}', "500 Internal Server Error")


@dataclass
class Seen:
    """One request as the engine saw it. Times are readings of `time.monotonic`."""

    script: Script | None = None
    arrived_s: float = 0.0
    ended_s: float | None = None
    """When its answer had been written to the end."""
    closed_s: float | None = None
    """When its connection was closed before that."""
    num_sent: int = 0
    """Pieces of a stream that had been written when it was over."""
    here: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tokens(self) -> int:
        """What the engine has counted for it."""
        assert self.script is not None
        if self.ended_s is not None:
            return int(usage(self.script.chunks)["total_tokens"])
        return max(0, self.num_sent - 1)


class Engine:
    """What a stand-in in this process has seen, by the ids of scripts."""

    def __init__(self) -> None:
        self.seen: dict[int, Seen] = {}
        self.url = ""

    def of(self, id: int) -> Seen:
        """One request's fate, which may lie ahead."""
        return self.seen.setdefault(id, Seen())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Engine]:
        """Listens for as long as the block runs."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Scripted(self), "127.0.0.1", 0, backlog=1024)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()


class Scripted(Streamer):
    """One connection of the engine."""

    def __init__(self, engine: Engine):
        super().__init__()
        self._engine = engine
        self._seen: Seen | None = None

    def complete(self, body: bytes) -> None:
        """Answers as the request's script says."""
        assert self._transport is not None
        script = Script(**json.loads(body)["bench"])
        seen = self._seen = self._engine.of(script.id)
        self.num_sent = 0
        seen.script, seen.arrived_s = script, time.monotonic()
        seen.here.set()
        if script.fault == "500":
            self._transport.write(FAILED)
            return self._over()
        if script.fault == "cut":
            asyncio.get_running_loop().call_later(script.wait_s + script.gap_s * script.chunks / 2, self._cut)
        return self.replay(PLAN(script.chunks, script.gap_s, script.wait_s, script.chunks), body)

    def ended(self) -> None:
        """Notes that an answer was written."""
        if self._seen is not None:
            self._seen.ended_s = time.monotonic()
        self._over()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notes which request was left alone."""
        super().connection_lost(exc)
        if self._seen is not None:
            self._seen.closed_s = time.monotonic()
        self._over()

    def _over(self) -> None:
        if self._seen is not None:
            self._seen.num_sent = self.num_sent
            self._seen.over.set()
            self._seen = None

    def _cut(self) -> None:
        assert self._transport is not None
        if self._seen is not None:
            self._transport.abort()


def main() -> None:
    """Serves until standard input is closed."""
    engine = Engine()
    asyncio.run(serve(lambda: Scripted(engine), int(sys.argv[1])))


if __name__ == "__main__":
    main()
