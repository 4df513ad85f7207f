from __future__ import annotations

import contextlib

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
    door = Door(limit=1, retry_after_s=7)
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
