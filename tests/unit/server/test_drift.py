from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.acceptance import AcceptanceRecord
from server.drift import DriftGuard, DriftSettings, Expected, State, Turn
from stages.errors import InputError
from stages.settings import validate

SETTINGS = DriftSettings(window_s=100, min_drafts=100, stale_below=0.8, fresh_above=0.9)


def feed(guard: DriftGuard, start: float, length: float, requests: int = 100, step_s: float = 1) -> list[Turn]:
    """Requests of ten drafts each with this mean acceptance length."""
    record = AcceptanceRecord(10, 40, round(10 * (length - 1)))
    turns = (guard.see(start + step_s * index, record) for index in range(requests))
    return [turn for turn in turns if turn is not None]


def test_a_draft_that_does_as_expected_stays_fresh() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    assert feed(guard, 0, 2.0) == []
    assert guard.length(100) == 2.0


def test_a_draft_that_got_worse_is_stale_and_comes_back_by_itself() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    feed(guard, 0, 2.0)
    (turn,) = feed(guard, 100, 1.2)
    assert (turn.draft, turn.state, turn.expected) == ("d", State.STALE, 2.0)
    assert turn.seen < 1.6
    assert "draft 'd' is stale (mean acceptance length 1.60, expected 2.00)" in turn.line()
    (turn,) = feed(guard, 300, 1.9)
    assert (turn.state, guard.state) == (State.FRESH, State.FRESH)


def test_between_the_thresholds_nothing_turns() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    assert feed(guard, 0, 1.7, requests=300) == []
    feed(guard, 300, 1.0)
    assert guard.state is State.STALE
    assert feed(guard, 400, 1.7, requests=300) == []
    assert guard.state is State.STALE


def test_a_small_sample_decides_nothing() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    assert feed(guard, 0, 1.0, requests=9) == []
    assert guard.length(9) is None
    assert len(feed(guard, 10, 1.0, requests=1)) == 1


def test_other_settings_hold_for_the_sample_too() -> None:
    """Window and size of the sample must go together, or few drafts never come to be enough, or old ones decide."""
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    feed(guard, 0, 2.0, requests=10)
    guard.use(SETTINGS.model_copy(update={"min_drafts": 300}))
    assert guard.length(10) is None
    feed(guard, 10, 2.0, requests=20, step_s=50)
    assert guard.length(5000) == 2.0, (
        "what was seen before counts, and old drafts stay until there are enough newer ones"
    )
    guard.use(SETTINGS.model_copy(update={"min_drafts": 10, "window_s": 10}))
    assert len(feed(guard, 5000, 1.0, requests=1)) == 1


def test_little_traffic_decides_too_if_only_later() -> None:
    """The probing share of a quiet gateway must be enough to come back by."""
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    feed(guard, 0, 1.0)
    assert len(feed(guard, 1000, 2.0, requests=10, step_s=3600)) == 1


def test_a_turn_is_decided_by_what_came_after_the_one_before() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    feed(guard, 0, 1.0, requests=10)
    assert guard.state is State.STALE
    assert len(feed(guard, 10, 2.0, requests=10)) == 1


def test_requests_without_drafts_say_nothing() -> None:
    guard = DriftGuard("d", Expected(2.0), SETTINGS)
    for now in range(1000):
        assert guard.see(now, AcceptanceRecord(0, 0, 0)) is None
    assert guard.length(1000) is None


@given(st.integers(0, 2**32), st.floats(1.7, 3))
def test_noise_around_the_expected_length_turns_nothing(seed: int, expected: float) -> None:
    rng = random.Random(seed)
    guard = DriftGuard("d", Expected(expected), SETTINGS)
    for now in range(60):
        drafts = rng.randint(20, 60)
        accepted = sum(rng.random() < (expected - 1) / 4 for _ in range(4 * drafts))
        assert guard.see(now, AcceptanceRecord(drafts, 4 * drafts, accepted)) is None


@given(st.floats(0.05, 0.99), st.integers(1, 8), st.integers(1, 8))
def test_fewer_draft_tokens_are_expected_to_be_accepted_less(chance: float, stated: int, seen: int) -> None:
    """Against the sum itself, where each token is accepted with the same chance once those before it were."""

    def length(tokens: int) -> float:
        return 1 + sum(chance**i for i in range(1, tokens + 1))

    expected = Expected(length(stated), (length(stated) - 1) / stated)
    assert expected.at(seen) == pytest.approx(length(min(stated, seen)), rel=1e-6)
    assert expected.at(seen) <= expected.at(seen + 0.5) + 1e-9


def test_without_a_rate_the_length_is_expected_as_it_is() -> None:
    assert Expected(2.5).at(1) == 2.5
    assert Expected(1.0, 0.0).at(1) == 1.0


def test_a_schedule_that_proposes_less_under_load_does_not_make_a_draft_stale() -> None:
    """As good as ever at two tokens instead of five."""
    guard = DriftGuard("d", Expected(1 + 0.7 + 0.49 + 0.343 + 0.2401 + 0.16807, 1.94117 / 5), SETTINGS)
    for now in range(100):
        assert guard.see(now, AcceptanceRecord(100, 200, 119)) is None
    assert guard.length(100) == 2.19


def test_thresholds_without_hysteresis_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"'stale_below' \(0.9\) must be less than 'fresh_above' \(0.9\)"):
        validate(DriftSettings, {"stale_below": 0.9, "fresh_above": 0.9}, "serve")
