"""Looking after one engine: probing it, taking it in when it comes, and asking it for a token when it has gone quiet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from server.engine_list import EngineEntry
from server.health import Probe
from server.member import Member
from server.settings import GatewaySettings
from stages.errors import CheckFailed, EngineError
from stages.progress import log

Clock = Callable[[], float]
Alert = Callable[[str, str, str], object]
"""Takes an engine's name, and a word and a line on what has become of it."""
Intake = Callable[[EngineEntry], Awaitable[None]]
"""What an engine must pass before it gets requests; raises CheckFailed or EngineError where it does not."""

UNANSWERED_S = 5.0
"""Before an engine that could not be asked is asked again."""


async def look_after(
    member: Member, settings: GatewaySettings, intake: Callable[[], Intake | None], clock: Clock, alert: Alert
) -> None:
    """Goes on for as long as the gateway runs.

    Args:
        member: the engine.
        settings: how often it is probed.
        intake: gives what it must pass, which may change; None for nothing.
        clock: of the member's health.
        alert: told of each turn for the worse or the better.
    """
    asking = set[asyncio.Task[None]]()
    try:
        while True:
            member.nudge.clear()
            if await _probe(member, told=bool(settings.engines)):
                await _take_in(member, intake(), told=bool(settings.engines))
            if member.health.reachable and member.health.judge(clock()) and not asking:
                task = asyncio.create_task(_ask_for_token(member, settings.stuck_s / 2, clock))
                asking.add(task)
                task.add_done_callback(asking.discard)
            for word, line in member.turns(clock()):
                alert(member.entry.name, word, line)
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.probe_every_s):
                    await member.nudge.wait()
    finally:
        for task in asking:
            task.cancel()


async def _probe(member: Member, told: bool) -> bool:
    """Probes an engine; True when it waits to be taken in."""
    health = member.health
    away, probe = health.away, await member.upstream.probe()
    health.probed(probe)
    member.probed.set()
    if health.away != away and health.answered and told:
        log(f"engine {member.entry.name}: away ({probe.value}); its requests go elsewhere until it is back")
    if probe is Probe.GONE:  # what comes back may be another one; after mere silence it is the same
        member.renew()
    return health.reachable is True and not member.fit.is_set() and not member.unfit


async def _take_in(member: Member, intake: Intake | None, told: bool) -> None:
    """Lets an engine have requests once it has passed what it must."""
    name, started = member.entry.name, time.monotonic()
    try:
        if intake is not None:
            await intake(member.entry)
    except CheckFailed as error:
        member.unfit = True
        log(f"engine {name}: not taken in until it has been restarted: {error}")
        return
    except Exception as error:  # whatever it answered, it must be asked again, and the others be looked after
        if str(error) != member.trouble:
            what = (
                str(error) if isinstance(error, EngineError) else f"the check failed ({type(error).__name__}: {error})"
            )
            log(f"engine {name}: not taken in yet: {what}")
        member.trouble = str(error)
        await asyncio.sleep(UNANSWERED_S)
        return
    member.fit.set()
    member.breaker.reset()
    if told:
        log(f"engine {name}: taken in after {time.monotonic() - started:.1f} s")


async def _ask_for_token(member: Member, timeout_s: float, clock: Clock) -> None:
    """A generation of the gateway's own: an engine that carries it out is slow, not stuck."""
    member.token_probes += 1
    if await member.upstream.generates(member.entry.served_model, timeout_s):
        member.health.progress(clock())
