"""The client leaves, in each of four windows: the engine must learn of it at once, and the place be free again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace

from benchmarks.promises.client import Answer, Request, connected, hang_up
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, timed
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine, Script
from stages.progress import progress

NAME = "client-gone"
CLOSED_S = 0.1
"""What is promised."""
NEVER_S = 5.0
"""A try that takes longer is given up, and has taken so long."""
PLACES = 4
SETTINGS = {"max_in_flight": PLACES, "max_queued": 4}
HELD_S = 600.0
"""How long the engine would go on with what nobody waits for any more."""


@dataclass(frozen=True)
class Window:
    """A time at which a client leaves."""

    name: str
    stream: bool = True
    wait_s: float = 0.0
    """Before the engine's first byte."""
    reads: bool = False
    """Whether the client has read some of the answer."""
    queued: bool = False


WINDOWS = (
    Window("queued", queued=True),
    Window("before the first byte", wait_s=HELD_S),
    Window("mid-stream", reads=True),
    Window("waiting for an answer in one piece", stream=False, wait_s=HELD_S),
)


@dataclass(frozen=True)
class Tries:
    """What all tries share."""

    served: Served
    engine: Engine
    place: Place

    def request(self, window: Window) -> Request:
        """One that would never end by itself."""
        script = Script(next(self.place.ids), chunks=100_000, gap_s=0.005, wait_s=window.wait_s)
        return Request(script, window.stream)

    async def leave_at_engine(self, window: Window, hard: bool) -> tuple[float, float]:
        """Seconds from leaving until the engine's connection was closed, and until the place was free."""
        request = self.request(window)
        seen = self.engine.of(request.script.id)
        async with connected(self.served.port) as (reader, writer):
            writer.write(request.data())
            await seen.here.wait()
            if window.reads:
                await reader.readuntil(b"data: {")
            await asyncio.sleep(self.place.draw.uniform(0, 0.02))
            left_s = time.monotonic()
            hang_up(writer, hard)
            free_s = await self.served.settled(NEVER_S, under_way=0, at_the_engine=0)
            with suppress(TimeoutError):
                await asyncio.wait_for(seen.over.wait(), NEVER_S)
        return (seen.closed_s or left_s + NEVER_S) - left_s, (free_s or left_s + NEVER_S) - left_s

    async def leave_queue(self, window: Window, hard: bool) -> tuple[float, float]:
        """Twice the seconds from leaving until the place in the queue was free; `NEVER_S` if the engine was asked after all."""
        request = self.request(window)
        async with connected(self.served.port) as (_, writer):
            writer.write(request.data())
            if await self.served.settled(NEVER_S, queued=1) is None:
                return NEVER_S, NEVER_S
            await asyncio.sleep(self.place.draw.uniform(0, 0.02))
            left_s = time.monotonic()
            hang_up(writer, hard)
            free_s = await self.served.settled(NEVER_S, queued=0, under_way=PLACES)
        if free_s is None or self.engine.of(request.script.id).here.is_set():
            return NEVER_S, NEVER_S
        return free_s - left_s, free_s - left_s

    @asynccontextmanager
    async def all_places_taken(self) -> AsyncIterator[None]:
        """Fills the gateway for as long as the block runs."""
        holders = [self.request(WINDOWS[2]) for _ in range(PLACES)]
        asking = [asyncio.create_task(self.served.ask(holder.data())) for holder in holders]
        try:
            for holder in holders:
                await self.engine.of(holder.script.id).here.wait()
            yield
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await self.served.settled(NEVER_S, under_way=0)

    async def all_places_usable(self) -> bool:
        """Whether as many requests as there are places, and not one less, are at the engine together."""
        requests = [Request(Script(next(self.place.ids), wait_s=0.2)) for _ in range(PLACES)]
        asking = [asyncio.create_task(self.served.ask(request.data())) for request in requests]
        most = await self.served.settled(NEVER_S, at_the_engine=PLACES)
        answers: list[Answer] = await asyncio.gather(*asking)
        return most is not None and all(a.fulfils(r) for a, r in zip(answers, requests, strict=True))


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """All windows: a row for each."""
    rows: list[Row] = []
    async with (
        Engine().running() as engine,
        gateway(engine.url, place.folder / "client-gone.log", place.core, **SETTINGS) as served,
    ):
        tries = Tries(served, engine, place)
        with progress(NAME, plan.tries * len(WINDOWS), "tries") as advance:
            for window in WINDOWS:
                rows += await _window(tries, window, plan.tries, advance)
    return rows


async def _window(tries: Tries, window: Window, num_tries: int, advance: Callable[..., None]) -> list[Row]:
    closed, freed = list[float](), list[float]()
    async with tries.all_places_taken() if window.queued else nullcontext():
        for number in range(num_tries):
            leave = tries.leave_queue if window.queued else tries.leave_at_engine
            closed_s, freed_s = await leave(window, hard=bool(number % 2))
            closed.append(closed_s)
            freed.append(freed_s)
            advance(note=window.name)
    usable = await tries.all_places_usable()
    return [_row(window, closed, freed, usable)]


def _row(window: Window, closed: list[float], freed: list[float], usable: bool) -> Row:
    """A try is kept when both were in time; that no place is lost is seen at the end of each window."""
    what = "its place in the queue free" if window.queued else "the engine's connection closed, its place free"
    text = f"client gone, {window.name}: {what} within {1e3 * CLOSED_S:g} ms"
    both = [max(one, other) for one, other in zip(closed, freed, strict=True)]
    more = {"worst_closed_ms": round(1e3 * max(closed), 3), "worst_freed_ms": round(1e3 * max(freed), 3)}
    row = timed(NAME, text, both, CLOSED_S, **more, all_places_usable=usable, settings=SETTINGS)
    return row if usable else replace(row, is_kept=False)
