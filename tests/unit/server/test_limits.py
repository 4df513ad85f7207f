"""Budgets hold for every minute, whatever comes when, and however it ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.limits import MINUTE_S, NEVER, Booking, Budget, Exceeded, Limit, Window

LIMIT = 100
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0, 40)),
        st.tuples(st.just("ask"), st.integers(0, 120)),
        st.tuples(st.just("end"), st.integers(0, 120)),
        st.tuples(st.just("cancel"), st.integers(0, 120)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=80, deadline=None)
def test_no_minute_holds_more_than_the_limit(steps: list[tuple[str, float]]) -> None:
    """Against a slow reference: every admitted request with the time of its admission and what it was charged in the end."""
    budget, now = Budget(), 0.0
    budget.allow(None, LIMIT, None)
    charged: dict[Booking, tuple[float, int]] = {}
    under_way: list[Booking] = []
    for what, amount in steps:
        if what == "pass":
            now += amount
        elif what == "ask":
            booking = budget.enter(now)
            try:
                booking.reserve(int(amount), now)
            except Exceeded as error:
                booking.end(0, False, now)
                hopeless = error.wait_s == NEVER
                assert hopeless if amount > LIMIT else _is_full(charged, now, amount)
            else:
                charged[booking] = now, int(amount)
                under_way.append(booking)
        elif under_way:
            booking = under_way.pop(0)
            at, declared = charged[booking]
            used = 0 if what == "cancel" else min(declared, int(amount))
            booking.end(used, True, now)
            booking.end(0, True, now)  # a second time changes nothing
            if at + MINUTE_S > now:
                charged[booking] = at, used
        for start, _ in charged.values():
            assert sum(tokens for at, tokens in charged.values() if start <= at < start + MINUTE_S) <= LIMIT


def _is_full(charged: dict[Booking, tuple[float, int]], now: float, amount: float) -> bool:
    """True when an amount does not fit, where a minute may last two slots longer."""
    recent = sum(tokens for at, tokens in charged.values() if at + MINUTE_S + 0.2 > now)
    return recent + amount > LIMIT


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), min_size=1, max_size=30), st.integers(1, LIMIT))
@settings(max_examples=60, deadline=None)
def test_after_the_time_that_was_told_it_fits_and_not_before(taken: list[tuple[float, int]], amount: int) -> None:
    window, now = Window(LIMIT), 0.0
    for pause, tokens in taken:
        now += pause
        if not window.wait_s(tokens, now):
            window.take(tokens, now)
    wait_s = window.wait_s(amount, now)
    assert wait_s <= MINUTE_S + 0.2
    if wait_s > 0.01:
        assert window.wait_s(amount, now + wait_s - 0.005)
    assert window.wait_s(amount, now + wait_s + 1e-6) == 0


def test_what_is_left_and_when_all_of_it_is_back() -> None:
    window = Window(10)
    assert (window.remaining(0), window.reset_s(0)) == (10, 0)
    slot = window.take(4, 0)
    assert window.remaining(30) == 6
    assert 30 < window.reset_s(30) < 30.2
    window.change(slot, 4, 31)
    assert (window.remaining(31), window.reset_s(31)) == (10, 0)


def test_memory_stays_bounded() -> None:
    window = Window(10**9)
    for step in range(20_000):
        window.take(1, step / 100)
    assert len(window._slots) < 700


def test_more_than_was_declared_is_booked_on_top() -> None:
    budget = Budget()
    budget.allow(None, LIMIT, None)
    booking = budget.enter(0)
    booking.reserve(10, 0)
    booking.end(35, True, 1)
    assert budget.tokens is not None
    assert budget.tokens.remaining(1) == LIMIT - 35


def test_tokens_that_nobody_counted_stay_booked_as_declared() -> None:
    budget = Budget()
    budget.allow(None, LIMIT, None)
    booking = budget.enter(0)
    booking.reserve(10, 0)
    booking.end(None, True, 1)
    assert budget.tokens is not None
    assert budget.tokens.remaining(1) == LIMIT - 10


def test_requests_that_were_turned_away_do_not_count() -> None:
    budget = Budget()
    budget.allow(1, None, None)
    budget.enter(0).end(0, False, 0)
    budget.enter(0).end(0, True, 0)
    with pytest.raises(Exceeded) as caught:
        budget.enter(1)
    assert caught.value.limit is Limit.REQUESTS
    assert 59 < caught.value.wait_s < 59.2
    budget.enter(61)


def test_only_so_many_at_the_same_time() -> None:
    budget = Budget()
    budget.allow(5, None, 1)
    first = budget.enter(0)
    with pytest.raises(Exceeded) as caught:
        budget.enter(0)
    assert caught.value.limit is Limit.CONCURRENT
    first.end(0, True, 0)
    first.end(0, True, 0)
    assert budget.running == 0
    budget.enter(0)
    assert budget.requests is not None
    assert budget.requests.remaining(0) == 3


def test_limits_change_under_requests_without_losing_count() -> None:
    budget = Budget()
    budget.allow(None, LIMIT, 2)
    booking = budget.enter(0)
    booking.reserve(60, 0)
    budget.allow(None, 50, 1)
    assert budget.tokens is not None
    assert budget.tokens.remaining(0) == 0
    budget.allow(3, None, None)
    budget.allow(3, LIMIT, None)  # a new window, in which the old booking is none
    booking.end(10, False, 1)
    assert (budget.tokens.remaining(1), budget.running) == (LIMIT, 0)
    assert budget.requests is not None
    assert budget.requests.remaining(1) == 3
