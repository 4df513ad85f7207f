"""The engine is killed while it streams, and comes back: every stream is told, ``/ready`` says so, and serving resumes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass, field

from benchmarks.promises.client import Answer, Request, connected, exchange
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, counted, timed
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Script
from benchmarks.promises.waiting import seconds_until
from server.engine import choose_port
from stages.errors import EngineError
from stages.progress import progress

NAME = "engine-killed"
STREAMS = 8
TOLD_S, BACK_S = 2.0, 5.0
"""What is promised: 503 on ``/ready`` after the engine's death, an answer after its return."""
NEVER_S = 20.0


class Killable:
    """An engine as a process of its own, always on the same port."""

    def __init__(self) -> None:
        self.port = choose_port(None)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until it listens."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.promises.upstream", str(self.port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._child.stdout is not None
        if not self._child.stdout.readline():
            raise EngineError(f"the engine's stand-in does not come up on port {self.port}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._child is not None:
            with self._child as child:
                child.kill()
            self._child = None


@dataclass
class Found:
    """Of all tries so far."""

    told: list[bool] = field(default_factory=list)
    unready_s: list[float] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """Three rows."""
    engine, found = Killable(), Found()
    engine.start()
    try:
        async with gateway(f"http://127.0.0.1:{engine.port}", place.folder / "death.log", place.core) as served:
            with progress(NAME, plan.tries, "deaths") as advance:
                for _ in range(plan.tries):
                    await _die_and_return(served, engine, place, found)
                    advance()
    finally:
        engine.kill()
    return [
        counted(NAME, f"engine killed in mid-stream: an error event to all {STREAMS} streams", found.told, "not told"),
        timed(NAME, f"503 on /ready within {TOLD_S:g} s of its death", found.unready_s, TOLD_S),
        timed(NAME, f"served again within {BACK_S:g} s of its return", found.back_s, BACK_S),
    ]


async def _die_and_return(served: Served, engine: Killable, place: Place, found: Found) -> None:
    begun = asyncio.Semaphore(0)
    reading = [asyncio.create_task(_stream(served, place, begun)) for _ in range(STREAMS)]
    for _ in reading:
        await begun.acquire()
    died_s = time.monotonic()
    engine.kill()
    found.unready_s.append(await seconds_until(lambda: _is_unready(served), died_s, NEVER_S))
    found.told += [_was_told(end) for end in await asyncio.gather(*reading)]
    await asyncio.to_thread(engine.start)
    found.back_s.append(await seconds_until(lambda: _is_served(served, place), time.monotonic(), NEVER_S))


async def _stream(served: Served, place: Place, begun: asyncio.Semaphore) -> Answer:
    """Reads a stream to its end, and tells when it has begun."""
    request = Request(Script(next(place.ids), chunks=100_000, gap_s=0.02))
    async with connected(served.port) as (reader, writer):
        return await exchange(reader, writer, request.data(), begun.release)


def _was_told(end: Answer) -> bool:
    """Whether a stream ended in an error event, and as HTTP says it must."""
    return end.complete and b'data: {"error"' in end.body and end.body.endswith(b"data: [DONE]\n\n")


async def _is_unready(served: Served) -> bool:
    return await served.ready() == 503


async def _is_served(served: Served, place: Place) -> bool:
    request = Request(Script(next(place.ids)))
    return (await served.ask(request.data())).fulfils(request)
