import statistics
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loadtests.schedule import arrivals, dispatch, duration_of, level_at, requests_for, requests_of, steps_of, turns_of
from loadtests.settings import Length, LoadSettings, Shape, Tenant
from stages.errors import InputError
from tests.unit.loadtests.asking import PACKAGED, request

MIXED = LoadSettings(
    kinds={"chat": 3, "code": 1}, stream=0.5, tenants=(Tenant(name="a", weight=4), Tenant(name="b")),
    lengths=(Length(max_tokens=8, weight=2), Length(max_tokens=32, min_chars=50)),
)  # fmt: skip
SHAPES = [
    Shape(level=20, duration_s=40),
    Shape(kind="ramp", level=5, to=40, duration_s=40),
    Shape(kind="burst", level=5, to=50, every_s=10, burst_s=2, duration_s=40),
    Shape(kind="step", level=10, to=30, by=10, every_s=13),
]


def test_the_same_seed_sends_the_same_requests_at_the_same_times() -> None:
    again = MIXED.model_copy()
    assert turns_of(MIXED, PACKAGED) == turns_of(again, PACKAGED)
    other = turns_of(MIXED.model_copy(update={"seed": 1}), PACKAGED)
    assert [turn.requests for turn in other] != [turn.requests for turn in turns_of(MIXED, PACKAGED)]


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_a_longer_schedule_begins_like_a_shorter_one(short: int, more: int) -> None:
    assert requests_of(MIXED, PACKAGED, short + more, "x")[:short] == requests_of(MIXED, PACKAGED, short, "x")


def test_shares_are_as_weighted() -> None:
    found = requests_of(MIXED, PACKAGED, 4000, "x")

    def share(count: int) -> float:
        return count / len(found)

    assert share(sum(r.prompt.kind == "chat" for r in found)) == pytest.approx(0.75, abs=0.03)
    assert share(sum(r.stream for r in found)) == pytest.approx(0.5, abs=0.03)
    assert share(sum(r.tenant == "a" for r in found)) == pytest.approx(0.8, abs=0.03)
    assert share(sum(r.max_tokens == 8 for r in found)) == pytest.approx(2 / 3, abs=0.03)
    assert all(r.prompt.chars >= 50 for r in found if r.max_tokens == 32)
    assert not any(r.prompt.kind == "text" for r in found)


def test_what_no_prompt_can_be_is_refused() -> None:
    with pytest.raises(InputError, match="kinds: no prompt is of kind 'song'; the prompts' kinds: chat, code, text"):
        requests_of(LoadSettings(kinds={"song": 1}), PACKAGED, 1, "x")
    with pytest.raises(InputError, match="no prompt has 5000 to inf characters"):
        requests_of(LoadSettings(lengths=(Length(min_chars=5000),)), PACKAGED, 1, "x")
    with pytest.raises(InputError, match="no prompt of kind 'chat' is within"):
        requests_of(LoadSettings(lengths=(Length(max_chars=40),)), PACKAGED, 1, "x")
    with pytest.raises(InputError, match="give users, rates or a shape"):
        turns_of(LoadSettings(users=(), rates=()), PACKAGED)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_as_many_arrive_as_the_shape_says(shape: Shape) -> None:
    counts = [len(list(arrivals(shape, f"seed {seed}"))) for seed in range(20)]
    steps = 4000
    expected = (
        sum(level_at(shape, (i + 0.5) * duration_of(shape) / steps) for i in range(steps)) * duration_of(shape) / steps
    )
    assert statistics.mean(counts) == pytest.approx(expected, abs=4 * (expected / len(counts)) ** 0.5)
    times = list(arrivals(shape, "seed 0"))
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < duration_of(shape)
    assert max(level_at(shape, at) for at in times) <= max(shape.level, shape.to or 0)


def test_gaps_of_a_steady_rate_are_exponential() -> None:
    times = list(arrivals(Shape(level=50, duration_s=200), "gaps"))
    gaps = [b - a for a, b in pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.05)


def test_levels_over_time() -> None:
    steady, ramp, burst, step = SHAPES
    assert {level_at(steady, at) for at in (0, 39)} == {20}
    assert [level_at(ramp, at) for at in (0, 20, 40, 50)] == [5, 22.5, 40, 40]
    assert [level_at(burst, at) for at in (0, 7.9, 8, 9.9, 10)] == [5, 5, 50, 50, 5]
    assert [level_at(step, at) for at in (0, 12.9, 13, 38, 39)] == [10, 10, 20, 30, 30]
    assert steps_of(Shape(kind="step", level=0.1, to=0.5, by=0.1)) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_closed_turn_has_as_many_requests_for_each_user() -> None:
    settings = LoadSettings(users=(1, 6), rates=(2,), turns=2, requests_per_turn=8, requests_per_user=1, turn_s=5)
    turns = turns_of(settings, PACKAGED)
    closed = {(turn.condition, turn.number): len(turn.requests) for turn in turns if turn.loop == "closed"}
    assert closed == {("closed-1", 0): 8, ("closed-1", 1): 8, ("closed-6", 0): 12, ("closed-6", 1): 12}
    assert all(turn.until_s is None for turn in turns if turn.loop == "closed")
    opened = [turn for turn in turns if turn.loop == "open"]
    assert [turn.number for turn in turns] == [0, 0, 0, 1, 1, 1]
    assert opened[0].requests != opened[1].requests
    assert all(0 < r.at_s < 5 for turn in opened for r in turn.requests if r.at_s is not None)


def test_many_users_are_as_many_for_most_of_a_turn() -> None:
    turns = turns_of(
        LoadSettings(users=(1, 16), rates=(), turns=1, requests_per_turn=12, requests_per_user=5), PACKAGED
    )
    assert [len(turn.requests) for turn in turns] == [12, 80]


def test_a_run_is_bounded_in_requests() -> None:
    settings = LoadSettings(max_requests=5, users=(4,), rates=(1000.0,), turns=1)
    assert {len(turn.requests) for turn in turns_of(settings, PACKAGED)} == {5}
    assert len(requests_for(settings, PACKAGED, "closed", Shape(), "x")) == 5


def test_steps_come_last_and_rise() -> None:
    settings = LoadSettings(loop="open", shape=Shape(kind="step", level=1, to=3, every_s=2), users=(1,), rates=())
    assert [turn.condition for turn in turns_of(settings, PACKAGED)] == ["closed-1"] * 3 + [
        "step-1",
        "step-2",
        "step-3",
    ]


class Clock:
    """Time that passes only where someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_an_open_loop_sends_when_it_is_due_while_nothing_is_answered() -> None:
    clock, sent = Clock(), []
    due = [0.5, 0.6, 0.6, 3.0]
    asked = [request(place, at_s=at) for place, at in enumerate(due)]
    dispatch(asked, lambda r: sent.append((r.place, clock.now())), clock.now, clock.sleep)  # never waits for an answer
    assert [place for place, _ in sent] == [0, 1, 2, 3]
    assert [at for _, at in sent] == pytest.approx(due)


def test_an_open_loop_that_was_held_up_catches_up() -> None:
    clock, sent = Clock(), []

    def send(r: object) -> None:
        sent.append(clock.now())
        if len(sent) == 1:
            clock.sleep(1.0)  # all connections are taken

    dispatch([request(i, at_s=at) for i, at in enumerate([0.1, 0.2, 0.3, 2.0])], send, clock.now, clock.sleep)
    assert sent == pytest.approx([0.1, 1.1, 1.1, 2.0])


def test_a_streamed_request_asks_for_usage() -> None:
    body = request(stream=True).body("m")
    assert body["stream_options"] == {"include_usage": True}
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert "stream" not in request(stream=False).body("m")
