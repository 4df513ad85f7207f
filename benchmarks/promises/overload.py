"""Three times as many requests as can be served, for a minute: who is let in is served as always, who is not is told at once.

Requests come at random times (a Poisson process), whether or not earlier ones have been answered, as those of many clients do.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.gateway import cpu_s, percentile
from benchmarks.promises.client import Answer, Request
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, counted, timed
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine, Script
from stages.progress import progress

NAME = "overload"
PLACES = 32
"""What the engine computes at once."""
WAIT_S, CHUNKS, GAP_S = 0.2, 32, 0.02
"""The engine: time to first byte, then the pace of its stream."""
SERVICE_S = WAIT_S + CHUNKS * GAP_S
CAPACITY = PLACES / SERVICE_S
"""Requests per second."""
UNLOADED, OVERLOAD = 0.25, 3.0
"""Of the capacity."""
SETTINGS = {"max_in_flight": PLACES, "max_queued": PLACES, "queue_wait_s": 0.02}
"""As many places as the engine computes at once, and a wait that still leaves time to refuse within the 50 ms."""
REFUSED_S, SLOWER, NORMAL_S = 0.05, 2.0, 5.0
"""What is promised."""


@dataclass(frozen=True)
class Try:
    """One request and what came of it."""

    request: Request
    answer: Answer

    @property
    def served(self) -> bool:
        """Whether it was let in and answered with all that it asked for."""
        return self.answer.fulfils(self.request)

    @property
    def refused(self) -> bool:
        """Whether it was told when to come back."""
        return self.answer.refused

    @property
    def ttfb_s(self) -> float:
        """Of one that was served."""
        assert self.answer.ttfb_s is not None
        return self.answer.ttfb_s


@dataclass(frozen=True)
class Phases:
    """All tries, by when they were made."""

    before: list[Try]
    during: list[Try]
    after: list[Try]
    ended_s: float
    """When the overload ended: a reading of `time.monotonic`."""
    busy: float
    """CPU seconds of the gateway in a second of overload."""

    @property
    def usual_s(self) -> float:
        """Unloaded time to first byte, p99."""
        return percentile([one.ttfb_s for one in self.before if one.served], 0.99)

    def is_normal(self, one: Try) -> bool:
        """Whether it was served as when there is no load."""
        return one.served and one.ttfb_s <= SLOWER * self.usual_s


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """Four rows."""
    async with (
        Engine().running() as engine,
        gateway(engine.url, place.folder / "overload.log", place.core, **SETTINGS) as served,
    ):
        seconds = round(plan.unloaded_s + plan.overload_s + plan.recovery_s)
        with progress(NAME, seconds, "seconds") as advance:
            before = await _arrivals(served, place, UNLOADED * CAPACITY, plan.unloaded_s, advance)
            began_s, spent_s = time.monotonic(), cpu_s(served.child.pid)
            during = await _arrivals(served, place, OVERLOAD * CAPACITY, plan.overload_s, advance)
            ended_s = time.monotonic()
            busy = (cpu_s(served.child.pid) - spent_s) / (ended_s - began_s)
            after = await _arrivals(served, place, UNLOADED * CAPACITY, plan.recovery_s, advance)
        return rows(Phases(*(await asyncio.gather(*map(_all, (before, during, after)))), ended_s, busy), plan)


async def _all(asking: Sequence[asyncio.Task[Try]]) -> list[Try]:
    return list(await asyncio.gather(*asking))


async def _arrivals(
    served: Served, place: Place, per_s: float, seconds: float, advance: Callable[..., None]
) -> list[asyncio.Task[Try]]:
    """Starts requests at random times for so long; they may still run when it returns."""
    asking: list[asyncio.Task[Try]] = []
    started = due_s = time.monotonic()
    told = 0
    while (due_s := due_s + place.draw.expovariate(per_s)) < started + seconds:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        asking.append(asyncio.create_task(_try(served, place)))
        if time.monotonic() - started >= told + 1:
            told += 1
            advance(note=f"{per_s:.0f} requests/s")
    await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
    return asking


async def _try(served: Served, place: Place) -> Try:
    request = Request(Script(next(place.ids), CHUNKS, GAP_S, WAIT_S))
    return Try(request, await served.ask(request.data()))


def rows(phases: Phases, plan: Plan) -> list[Row]:
    """What the phases say of each promise."""
    usual_s, during = phases.usual_s, phases.during
    refusals = [one.answer.e2e_s for one in during if one.refused]
    ttfb = [one.ttfb_s for one in during if one.served]
    p99_s = percentile(ttfb, 0.99) if ttfb else None
    load = f"{OVERLOAD:g}x overload for {plan.overload_s:g} s"
    shared = {
        "unloaded_ttfb_p99_s": usual_s,
        "requests_per_s": OVERLOAD * CAPACITY,
        "gateway_cpu": round(phases.busy, 3),
        "settings": SETTINGS,
    }
    wrong = [one.answer.told for one in (*phases.before, *during, *phases.after) if not (one.served or one.refused)]
    later = [one for one in phases.after if one.answer.sent_s > phases.ended_s + NORMAL_S]
    return [
        counted(NAME, f"{load}: every request answered whole, or refused with 503 and Retry-After",
                [one.served or one.refused for one in during], wrong=wrong[:3], **shared),
        timed(NAME, f"{load}: refusals within {1e3 * REFUSED_S:g} ms", refusals, REFUSED_S,
              median_ms=round(1e3 * statistics.median(refusals or [0.0]), 3), **shared),
        Row(
            NAME, f"{load}: accepted requests' p99 time to first byte within {SLOWER:g}x of unloaded", len(ttfb),
            sum(one <= SLOWER * usual_s for one in ttfb), round(p99_s / usual_s, 3) if p99_s else None, "x (p99)",
            SLOWER, p99_s is not None and p99_s <= SLOWER * usual_s, {"ttfb_p99_s": p99_s, **shared},
        ),
        Row(
            NAME, f"after {load}: served as unloaded from {NORMAL_S:g} s on", len(later), sum(map(phases.is_normal, later)),
            round(_abnormal_until_s(phases), 3), "s until normal", NORMAL_S, bool(later) and all(map(phases.is_normal, later)),
            shared,
        ),
    ]  # fmt: skip


def _abnormal_until_s(phases: Phases) -> float:
    """How long after the overload's end the last request came that was not served as usual."""
    slow = [one.answer.sent_s - phases.ended_s for one in phases.after if not phases.is_normal(one)]
    return max(slow, default=0.0)
