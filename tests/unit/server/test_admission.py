"""Who is served, waits or is refused: rules that hold for every order of events, with a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import Admission, Overloaded, Place

TENANTS = st.sampled_from("abc")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), TENANTS),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("pass"), st.floats(0, 3)),
    ),
    max_size=80,
)


@given(STEPS, st.integers(1, 4), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_places_are_never_too_many_never_idle_and_never_lost(
    steps: list[tuple[str, object]], max_running: int, max_queued: int
) -> None:
    admission, now, told = Admission(max_running, max_queued, max_wait_s=5), 0.0, []
    places: list[Place] = []
    for what, value in steps:
        if what == "ask":
            foretold = admission.refusal(str(value))
            try:
                place = admission.ask(str(value), now)
            except Overloaded as error:
                assert error == foretold  # noqa: PT017
                continue
            assert foretold is None
            place.tell = lambda place=place: told.append(place)
            places.append(place)
        elif what == "pass":
            now += float(value)  # type: ignore[arg-type]
        elif places:
            place = places.pop(int(value) % len(places))  # type: ignore[call-overload]
            admission.leave(place, now)
            admission.leave(place, now)
        running = [place for place in places if place.entered_s is not None]
        waiting = [place for place in places if place.waits]
        assert (admission.running, admission.queued) == (len(running), len(waiting))
        assert admission.running <= max_running
        assert admission.queued <= max_queued
        assert not waiting or admission.running == max_running
    assert len(told) == len({id(place) for place in told})
    for place in places:
        admission.leave(place, now)
    assert (admission.running, admission.queued) == (0, 0)
    assert not admission._queues


@given(st.lists(TENANTS, min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_request_waits_for_no_more_of_another_tenant_than_of_its_own(order: list[str]) -> None:
    admission = Admission(1, 100, max_wait_s=1e9)
    first = admission.ask("x", 0)
    waiting = [admission.ask(tenant, 0) for tenant in order]
    served: list[Place] = []
    current = first
    while len(served) < len(waiting):
        admission.leave(current, 0)
        current = next(place for place in waiting if place.entered_s is not None and not place.left)
        served.append(current)
    for place in waiting:
        before = served[: served.index(place)]
        own = sum(other.tenant == place.tenant for other in before)
        for tenant in set(order) - {place.tenant}:
            assert sum(other.tenant == tenant for other in before) <= own + 1
    assert [place for place in served if place.tenant == "a"] == [place for place in waiting if place.tenant == "a"]


def test_one_tenants_burst_does_not_keep_another_out_of_the_queue() -> None:
    admission = Admission(1, 4, max_wait_s=10)
    admission.ask("burst", 0)
    burst = [admission.ask("burst", 0) for _ in range(4)]
    with pytest.raises(Overloaded, match="queue_full"):
        admission.ask("burst", 0)
    single = admission.ask("single", 0)
    assert burst[-1].refused is not None
    assert burst[-1].refused.reason == "displaced"
    assert single.waits
    assert admission.queued == 4


def test_tenants_with_as_many_waiting_do_not_displace_each_other() -> None:
    admission = Admission(1, 2, max_wait_s=10)
    admission.ask("a", 0)
    kept = [admission.ask("a", 0), admission.ask("b", 0)]
    for tenant in "ab":
        with pytest.raises(Overloaded):
            admission.ask(tenant, 0)
    assert all(place.waits for place in kept)


def test_what_cannot_be_served_in_time_is_refused_at_once() -> None:
    admission = Admission(1, 100, max_wait_s=10)
    admission.leave(admission.ask("a", 0), 4)  # a request takes 4 s
    admission.ask("a", 4)
    admission.ask("a", 4)
    admission.ask("a", 4)
    with pytest.raises(Overloaded, match="too_late") as caught:
        admission.ask("a", 4)
    assert caught.value.retry_s == 3 * 4 - 10
    assert admission.ask("b", 4).waits  # its turn comes after one of a's
    assert admission.expected_wait_s("c") == 3 * 4


def test_who_waited_too_long_is_not_let_in() -> None:
    admission = Admission(1, 10, max_wait_s=5)
    first, late = admission.ask("a", 0), admission.ask("a", 0)
    fresh = admission.ask("a", 3)
    admission.leave(first, 6)
    assert late.refused is not None
    assert late.refused.reason == "too_late"
    assert fresh.entered_s == 6


def test_a_service_time_that_changes_is_followed() -> None:
    admission = Admission(2, 10, max_wait_s=5)
    assert admission.expected_wait_s("a") == 0
    for _ in range(100):
        admission.leave(admission.ask("a", 0), 8)
    assert admission.service_s == pytest.approx(8)
    assert admission.expected_wait_s("a") == pytest.approx(4)
