"""Engines that come, go and come back: who must pass what before it gets requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from server import care
from server.engine_list import EngineEntry
from server.errors import Refusal
from server.facts import Facts
from server.fleet import Fleet
from server.health import Probe
from server.settings import GatewaySettings
from server.upstream import EngineFailed
from stages.errors import CheckFailed, EngineError
from tests.unit.server.replay import Replay

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def fleet(intake: care.Intake, *engines: Replay) -> AsyncIterator[Fleet]:
    entries = [{"name": f"e{i}", "url": engine.url, "model": "m", "draft": "d"} for i, engine in enumerate(engines)]
    settings = GatewaySettings.model_validate({"engines": entries, "probe_every_s": 0.01, "probe_timeout_s": 0.2})
    opened = Fleet(settings, intake)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("waited 10 s in vain")


def serves(one: Fleet) -> bool:
    with suppress(Refusal):
        return bool(one.attempt(Facts("m")))
    return False


async def test_an_engine_gets_requests_once_it_has_passed_and_must_pass_again_when_it_was_gone() -> None:
    asked: list[str] = []
    passes = asyncio.Event()

    async def intake(entry: EngineEntry) -> None:
        asked.append(entry.name)
        await passes.wait()

    engine = Replay()
    async with engine.running(), fleet(intake, engine) as one:
        await until(lambda: asked == ["e0"])
        assert not serves(one)
        assert one.unserved() == ["m"]
        passes.set()
        await one.until_one_is_fit()
        assert serves(one)
        assert one.unserved() == []
        passes.clear()
        await engine.kill()
        await until(lambda: not serves(one))
        async with engine.running():
            await until(lambda: asked == ["e0", "e0"])
            assert not serves(one)
            passes.set()
            await until(lambda: serves(one))


async def test_an_engine_that_fails_the_check_stays_out_until_it_was_restarted_and_others_serve() -> None:
    asked: list[str] = []

    async def intake(entry: EngineEntry) -> None:
        asked.append(entry.name)
        if asked.count("e0") == 1 and entry.name == "e0":
            raise CheckFailed("it does not sample as it must")

    first, second = Replay(), Replay()
    async with first.running(), second.running(), fleet(intake, first, second) as one:
        await until(lambda: one.members["e1"].up)
        await asyncio.sleep(0.1)
        assert asked.count("e0") == 1, "it is not asked again for as long as it is the same"
        assert one.attempt(Facts("m")).member.entry.name == "e1"
        await first.kill()
        await until(lambda: one.members["e0"].health.away == 1)
        async with first.running():
            await until(lambda: one.members["e0"].up)


async def test_an_engine_that_only_was_silent_is_the_same_as_before() -> None:
    asked: list[str] = []

    async def intake(entry: EngineEntry) -> None:
        asked.append(entry.name)

    engine = Replay()
    async with engine.running(), fleet(intake, engine) as one:
        await one.until_one_is_fit()
        engine.silent = True
        await until(lambda: not serves(one))
        engine.silent = False
        await until(lambda: serves(one))
        assert asked == ["e0"]


def test_the_only_engine_is_spared_when_it_is_away_and_only_if_it_can_tell() -> None:
    one = Fleet(GatewaySettings(engine_url="http://127.0.0.1:1"))
    (member,) = one.members.values()
    for probe, served in ((Probe.GONE, True), (Probe.WELL, True), (Probe.GONE, False)):
        member.health.probed(probe)
        assert serves(one) is served
    member.health.probed(Probe.WELL)
    for _ in range(10):
        with suppress(EngineFailed), one.attempt(Facts()):
            raise EngineFailed
    assert serves(one), "its breaker is only shown: nobody else could be asked"


async def test_an_engine_that_cannot_be_asked_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care, "UNANSWERED_S", 0.01)
    asked: list[str] = []

    async def intake(entry: EngineEntry) -> None:
        asked.append(entry.name)
        if len(asked) < 3:
            raise EngineError("it answered 401")

    engine = Replay()
    async with engine.running(), fleet(intake, engine) as one:
        await until(lambda: serves(one))
        assert len(asked) == 3


async def test_turns_of_an_engine_are_told_once_each() -> None:
    async def intake(entry: EngineEntry) -> None:
        return

    told: list[str] = []
    engine = Replay()
    async with engine.running():
        entries = [{"name": "e0", "url": engine.url, "model": "m", "draft": "d"}]
        fields = {"engines": entries, "probe_every_s": 0.01, "breaker_failures": 1, "breaker_open_s": 0.05}
        one = Fleet(GatewaySettings.model_validate(fields), intake)
        one.alert = lambda name, word, line: told.append(f"{name} {word}")
        await one.open()
        (member,) = one.members.values()
        await until(lambda: member.up)
        with suppress(EngineFailed), one.attempt(Facts("m")):
            raise EngineFailed
        await until(lambda: told == ["e0 breaker opened"])
        await until(lambda: member.breaker.admits(one.clock()))
        with one.attempt(Facts("m")) as trial:
            trial.head(200)
            await until(lambda: told[1:] == ["e0 breaker closed"])
        await engine.kill()
        await until(lambda: told[2:] == ["e0 away"])
        async with engine.running():
            await until(lambda: told[3:] == ["e0 back"])
            member.health.stuck = True
            await until(lambda: told[4:] == ["e0 stuck"])
            member.health.progress(one.clock())
            await until(lambda: told[5:] == ["e0 back"])
            await asyncio.sleep(0.1)
        assert len(told) == 6
        await one.close()


async def test_who_has_seen_the_prompt_is_asked_again() -> None:
    async def intake(entry: EngineEntry) -> None:
        return

    engines = [Replay() for _ in range(3)]
    async with engines[0].running(), engines[1].running(), engines[2].running(), fleet(intake, *engines) as one:
        await until(lambda: all(member.up for member in one.members.values()))
        other, long = Facts("m", head=b"y" * 2000), Facts("m", head=b"x" * 2000)
        with one.attempt(other) as busy, one.attempt(long) as attempt:
            names = busy.member.entry.name, attempt.member.entry.name
        assert names == ("e0", "e1")
        with one.attempt(long) as again:
            assert again.member.entry.name == "e1"
        with one.attempt(Facts("m", head=b"z" * 2000)) as new:
            assert new.member.entry.name == "e0"
