from __future__ import annotations

import pytest

from server.health import Health, Probe


def test_a_refused_connection_is_believed_at_once_and_silence_the_second_time() -> None:
    gone, silent = Health(stuck_s=10), Health(stuck_s=10)
    for health in (gone, silent):
        assert health.well, "before the first probe nothing speaks against it"
        health.probed(Probe.WELL)
    gone.probed(Probe.GONE)
    silent.probed(Probe.SILENT)
    assert (gone.well, silent.well) == (False, True)
    silent.probed(Probe.SILENT)
    assert not silent.well
    silent.probed(Probe.WELL)
    assert silent.well
    assert (gone.away, silent.away) == (1, 1)


def test_an_engine_that_is_too_busy_to_answer_probes_but_sends_bytes_is_there() -> None:
    health = Health(stuck_s=10)
    health.begin(0)
    for now in range(10):
        health.probed(Probe.SILENT)
        health.progress(now)
    assert health.well


@pytest.mark.parametrize("quiet_s", [9.9, 10.0])
def test_an_engine_with_requests_that_sends_no_byte_is_stuck(quiet_s: float) -> None:
    health = Health(stuck_s=10)
    health.probed(Probe.WELL)
    health.begin(100)
    health.judge(100 + quiet_s)
    assert health.well is (quiet_s < 10)


def test_it_is_asked_for_a_token_after_half_the_time() -> None:
    health = Health(stuck_s=10)
    health.begin(0)
    assert [health.judge(now) for now in (0, 4.9, 5, 9)] == [False, False, True, True]
    health.progress(9)
    assert not health.judge(13)


def test_having_nothing_to_do_is_not_being_stuck() -> None:
    health = Health(stuck_s=10)
    health.begin(0)
    health.end()
    assert not health.judge(1000)
    health.begin(1000)
    assert not health.judge(1004)
    assert health.well


def test_a_stuck_engine_stays_so_until_it_gets_on_even_when_its_requests_leave() -> None:
    health = Health(stuck_s=10)
    health.begin(0)
    health.judge(10)
    health.end()
    assert health.judge(11), "it is asked for a token again and again"
    assert not health.well
    health.probed(Probe.WELL)
    assert not health.well, "a server that answers probes can be stuck behind them"
    health.progress(12)
    assert health.well


def test_an_engine_that_was_away_comes_back_as_one_that_is_not_stuck() -> None:
    health = Health(stuck_s=10)
    health.begin(0)
    health.judge(10)
    health.end()
    health.probed(Probe.GONE)
    health.probed(Probe.WELL)
    assert health.well
