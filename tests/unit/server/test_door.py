from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable

import pytest

from server.door import Door, Phase
from server.errors import Refusal


def test_a_place_is_given_back_once_however_the_request_ends() -> None:
    door = Door(limit=1)
    with contextlib.suppress(KeyError), door.enter():
        assert door.running == 1
        raise KeyError
    assert door.running == 0


def test_when_too_many_bodies_are_read_it_says_so_and_when_to_come_back() -> None:
    door = Door(limit=1, retry_after_s=7, max_reading=1)
    with door.read(), pytest.raises(Refusal) as caught, door.read():
        pass
    assert (caught.value.status, caught.value.retry_after_s) == (503, 7)
    assert door.reading == 0


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
def test_nobody_gets_in_before_and_after(phase: Phase) -> None:
    door = Door(limit=1, phase=phase)
    with pytest.raises(Refusal) as caught, door.enter():
        pass
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    assert caught.value.code == phase.value


def test_those_inside_may_stay_when_the_phase_changes() -> None:
    door = Door(limit=2)
    with door.enter():
        door.phase = Phase.DRAINING
        assert door.running == 1
    assert door.running == 0


async def waiting(turn: Awaitable[None]) -> None:
    await turn


async def hold(door: Door, tenant: str, until: asyncio.Event, served: list[str]) -> None:
    async with door.place(tenant, waiting):
        served.append(tenant)
        await until.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_place_is_waited_for_and_given_in_turn() -> None:
    async def run() -> None:
        door, end, served = Door(limit=1, max_queued=9), asyncio.Event(), []
        tasks = [asyncio.create_task(hold(door, tenant, end, served)) for tenant in "aaab"]
        await settle()
        assert (served, door.admission.queued) == (["a"], 3)
        end.set()
        await asyncio.gather(*tasks)
        assert served == ["a", "a", "b", "a"]
        assert (door.admission.running, door.admission.queued) == (0, 0)

    asyncio.run(run())


@pytest.mark.parametrize("given_at_the_same_moment", [False, True])
def test_who_leaves_while_queued_gives_its_place_back(given_at_the_same_moment: bool) -> None:
    async def run() -> None:
        door, end, served = Door(limit=1, max_queued=9), asyncio.Event(), []
        first, second, third = [asyncio.create_task(hold(door, "a", end, served)) for _ in range(3)]
        await settle()
        if given_at_the_same_moment:
            end.set()
            await first  # which has just given its place to the second
        second.cancel()
        end.set()
        done = await asyncio.gather(first, second, third, return_exceptions=True)
        assert isinstance(done[1], asyncio.CancelledError) or given_at_the_same_moment
        assert done[2] is None
        assert (door.admission.running, door.admission.queued) == (0, 0)

    asyncio.run(run())


def test_a_place_that_does_not_come_in_time_is_refused() -> None:
    async def run() -> None:
        door, end, served = Door(limit=1, max_queued=9, max_wait_s=0.05), asyncio.Event(), []
        first = asyncio.create_task(hold(door, "a", end, served))
        await settle()
        with pytest.raises(Refusal) as caught:
            await hold(door, "b", end, served)
        assert (caught.value.status, caught.value.code) == (503, "overloaded")
        assert caught.value.retry_after_s
        end.set()
        await first
        assert (door.admission.running, door.admission.queued, served) == (0, 0, ["a"])

    asyncio.run(run())


def test_who_is_displaced_is_told_so_at_once() -> None:
    async def run() -> None:
        door, end, served = Door(limit=1, max_queued=2), asyncio.Event(), []
        tasks = [asyncio.create_task(hold(door, tenant, end, served)) for tenant in "aaab"]
        await settle()
        assert tasks[2].done()
        with pytest.raises(Refusal, match="the most requests"):
            await tasks[2]
        end.set()
        await asyncio.gather(tasks[0], tasks[1], tasks[3])

    asyncio.run(run())


def test_before_it_leaves_it_takes_requests_but_is_not_ready() -> None:
    door = Door(limit=1)
    assert door.not_ready() is None
    door.phase = Phase.LEAVING
    with door.enter():
        assert door.running == 1
    refusal = door.not_ready()
    assert refusal is not None
    assert (refusal.status, refusal.code) == (503, "leaving")
