"""SIGTERM under load: what has been accepted ends whole, what waits for a place included, and the gateway ends by itself."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field, replace

from benchmarks.promises.load import Asked, Load
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, counted
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine
from benchmarks.promises.waiting import seconds_until
from stages.progress import progress

NAME = "sigterm"
CLIENTS = 48
SETTINGS = {"max_in_flight": 32, "drain_s": 30}
"""Fewer places than clients, so that some requests wait; the grace period is the default one."""
UNDER_WAY_S = 0.1
"""A request that was sent so long before the signal has been accepted; a later one may come after it, and be refused."""
ENDS_S = 45.0


@dataclass
class Found:
    """Of all rounds so far."""

    accepted: list[bool] = field(default_factory=list)
    """Whether each request that was under way at the signal was answered whole."""
    refused: int = 0
    """Requests told to come again: those after the signal, or in the instant before it."""
    unanswered: int = 0
    """Requests after the signal on kept connections that were closed without a word, which a client may send again."""
    lost: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """One row: every request that was under way at a signal is a try."""
    found = Found()
    async with Engine().running() as engine:
        with progress(NAME, plan.tries, "requests") as advance:
            while len(found.accepted) < plan.tries and len(found.codes) < plan.tries:
                before = len(found.accepted)
                async with gateway(engine.url, place.folder / "sigterm.log", place.core, **SETTINGS) as served:
                    await _end_under_load(served, place, found)
                advance(len(found.accepted) - before)
    clean = not found.lost and not any(found.codes)
    row = counted(
        NAME, f"SIGTERM under load of {CLIENTS} clients: accepted requests all answered whole", found.accepted,
        rounds=len(found.codes), exit_codes=sorted(set(map(str, found.codes))), ended_within_s=round(max(found.ended_s), 3),
        refused=found.refused, closed_without_answer_after_signal=found.unanswered, wrong=found.lost[:3], settings=SETTINGS,
    )  # fmt: skip
    return [row if clean else replace(row, is_kept=False)]


async def _end_under_load(served: Served, place: Place, found: Found) -> None:
    load = Load(served, place)
    clients = [asyncio.create_task(load.client(_was_served)) for _ in range(CLIENTS)]
    await seconds_until(load.has_begun, time.monotonic(), ENDS_S)
    await asyncio.sleep(place.draw.uniform(0, 0.5))
    signalled_s = time.monotonic()
    served.child.send_signal(signal.SIGTERM)
    try:
        found.codes.append(await asyncio.to_thread(served.child.wait, ENDS_S))
        found.ended_s.append(time.monotonic() - signalled_s)
    finally:
        load.stopping.set()
        await asyncio.gather(*clients)
    for asked in load.done:
        _judge(asked, signalled_s, found)


def _was_served(asked: Asked) -> bool:
    """A client goes away when it has been turned away."""
    return asked.answer.status == 200


def _judge(asked: Asked, signalled_s: float, found: Found) -> None:
    sent_s, answer = asked.answer.sent_s, asked.answer
    if sent_s + answer.e2e_s < signalled_s:
        if asked.is_lost:
            found.lost.append(answer.told)
    elif answer.refused and sent_s > signalled_s - UNDER_WAY_S:
        found.refused += 1
    elif sent_s <= signalled_s:
        found.accepted.append(answer.fulfils(asked.request))
        if not found.accepted[-1]:
            found.lost.append(answer.told)
    elif not answer.data:
        found.unanswered += 1
    elif asked.is_lost:
        found.lost.append(answer.told)
