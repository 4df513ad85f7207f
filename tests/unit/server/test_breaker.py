from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.breaker import Breaker, BreakerRule, BreakerState

RULE = BreakerRule(failures=3, open_s=1.0, max_open_s=5.0)


def tripped() -> Breaker:
    breaker = Breaker(RULE)
    for _ in range(3):
        breaker.fail(breaker.begin(0), 0)
    return breaker


def test_it_opens_after_failures_in_a_row_and_not_after_as_many_with_a_success_between() -> None:
    breaker = Breaker(RULE)
    for works in (False, False, True, False, False):
        assert breaker.admits(0)
        ticket = breaker.begin(0)
        breaker.succeed(ticket) if works else breaker.fail(ticket, 0)
    assert breaker.state(0) is BreakerState.CLOSED
    breaker.fail(breaker.begin(0), 0)
    assert breaker.state(0.99) is BreakerState.OPEN
    assert not breaker.admits(0.99)


def test_half_open_it_lets_one_through_whose_success_closes_it() -> None:
    breaker = tripped()
    assert breaker.state(1) is BreakerState.HALF_OPEN
    trial = breaker.begin(1)
    assert not breaker.admits(1)
    breaker.succeed(trial)
    assert breaker.state(1) is BreakerState.CLOSED


def test_each_trial_that_fails_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    breaker, now, waits = tripped(), 0.0, []
    for _ in range(5):
        began = now
        while not breaker.admits(now):
            now += 0.25
        waits.append(now - began)
        breaker.fail(breaker.begin(now), now)
    assert waits == [1, 2, 4, 5, 5]


def test_the_head_of_the_trials_answer_closes_it_however_long_the_answer_is() -> None:
    breaker = tripped()
    trial = breaker.begin(1)
    breaker.answer(trial)
    assert breaker.state(1) is BreakerState.CLOSED
    breaker.fail(trial, 2)
    for _ in range(2):
        assert breaker.admits(2)
        breaker.fail(breaker.begin(2), 2)
    assert breaker.state(2) is BreakerState.OPEN, "that the trial's answer broke off counts as any failure"


def test_the_heads_of_answers_that_break_off_are_no_successes() -> None:
    breaker = Breaker(RULE)
    for _ in range(3):
        ticket = breaker.begin(0)
        breaker.answer(ticket)
        breaker.fail(ticket, 0)
    assert breaker.state(0) is BreakerState.OPEN


def test_a_client_that_leaves_during_the_trial_says_nothing() -> None:
    breaker = tripped()
    breaker.give_up(breaker.begin(1))
    assert breaker.admits(1)
    assert breaker.state(1) is BreakerState.HALF_OPEN


def test_verdicts_from_before_it_opened_say_nothing_of_the_engine_now() -> None:
    breaker = Breaker(RULE)
    old = [breaker.begin(0) for _ in range(6)]
    for ticket in old[:3]:
        breaker.fail(ticket, 0)
    breaker.fail(old[3], 0.9)
    breaker.succeed(old[4])
    assert breaker.state(0.9) is BreakerState.OPEN
    assert breaker.state(1) is BreakerState.HALF_OPEN, "the failure at 0.9 s must not make it wait anew"
    breaker.succeed(breaker.begin(1))
    breaker.fail(old[5], 1)
    breaker.fail(breaker.begin(1), 1)
    breaker.fail(breaker.begin(1), 1)
    assert breaker.state(1) is BreakerState.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["begin", "head", "ok", "fail", "leave"]), st.floats(0, 2)), max_size=60))
def test_whatever_happens_at_most_one_request_is_under_way_until_an_open_breaker_has_closed(
    steps: list[tuple[str, float]],
) -> None:
    """And it never stays shut: with nothing under way, it admits somebody after a long wait."""
    breaker, now, under_way, since_open = Breaker(RULE), 0.0, list[int](), set[int]()
    for what, later in steps:
        now += later
        if what == "begin" and breaker.admits(now):
            half_open = breaker.state(now) is BreakerState.HALF_OPEN
            under_way.append(breaker.begin(now))
            since_open |= {under_way[-1]} if half_open else set()
        elif what == "head" and under_way:
            breaker.answer(under_way[0])
        elif what != "begin" and under_way:
            ticket = under_way.pop(0)
            since_open -= {ticket}
            if what == "fail":
                breaker.fail(ticket, now)
            else:
                (breaker.succeed if what == "ok" else breaker.give_up)(ticket)
        if breaker.state(now) is BreakerState.CLOSED:
            since_open.clear()
        assert len(since_open) <= 1
    for ticket in under_way:
        breaker.give_up(ticket)
    assert breaker.admits(now + 2 * RULE.max_open_s)
