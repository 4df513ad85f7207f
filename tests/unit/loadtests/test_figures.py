import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loadtests.answers import Outcome
from loadtests.figures import (
    Result,
    acceptance_over_time,
    acceptance_rate,
    busiest,
    goodput,
    held,
    mean_acceptance_length,
    percentile,
    rows_of,
    stops_paying,
    summary,
)
from loadtests.settings import Objective
from tests.unit.loadtests.asking import drafted, outcome

OBJECTIVE = Objective(ttft_s=0.2, tpot_s=0.15, share=0.75)


def result(
    target: str, outcomes: list[Outcome], level: float = 1, number: int = 0, loop: str = "closed", **more
) -> Result:
    step = more.get("step", False)
    name = f"{'step' if step else loop}-{level:g}"
    return Result(target, name, loop, level, number, more.get("began_s", 0.0), tuple(outcomes), step)  # type: ignore[arg-type]


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=20), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert all(sum(value <= other for value in values) < share * len(values) for other in values if other < found)


def test_rates_are_ratios_of_sums() -> None:
    outcomes = [drafted(0, 1, 2, 1), drafted(1, 0, 98, 20), outcome(2)]
    assert acceptance_rate(outcomes) == pytest.approx(1 / 100)
    assert mean_acceptance_length(outcomes) == pytest.approx(1 + 1 / 21)
    assert acceptance_rate([outcome()]) is None
    assert mean_acceptance_length([drafted(0, 0, 0, 0)]) is None


def test_goodput_counts_failed_requests_as_bad() -> None:
    outcomes = [outcome(), outcome(ttft_s=0.21), outcome(error="HTTP 429"), outcome()]
    assert goodput(outcomes, OBJECTIVE) == 0.5
    assert goodput([], OBJECTIVE) is None


def test_a_summary_leaves_failed_requests_out_of_times_and_tokens() -> None:
    found = summary([outcome(), outcome(error="HTTP 500", e2e_s=99.0, completion_tokens=50)], 2.0, OBJECTIVE)
    assert (found["requests"], found["errors"], found["error_kinds"]) == (2, 1, {"HTTP 500": 1})
    assert (found["tokens_per_s"], found["requests_per_s"], found["good_per_s"]) == (5.5, 0.5, 0.5)
    assert found["e2e_s_p99"] == 1.1
    assert found["tpot_s_p50"] == pytest.approx(0.1)
    assert found["gap_s_p50"] is None


def test_gains_are_by_throughput_in_a_closed_loop_and_by_time_in_an_open_one() -> None:
    slow = [outcome(0), outcome(1, due_s=1.1, sent_s=1.1)]
    fast = [outcome(0, e2e_s=0.55), outcome(1, due_s=0.55, sent_s=0.55, e2e_s=0.55)]
    for loop in ("closed", "open"):
        results = [result("plain", slow, loop=loop), result("draft", fast, loop=loop)]
        row = rows_of(results, OBJECTIVE)[1]
        assert row["gain"] == row["gain_low"] == row["gain_high"] == pytest.approx(2.0)
    waiting = [outcome(0, e2e_s=0.55), outcome(1, due_s=9.0, sent_s=9.0, e2e_s=0.55)]  # arrivals far apart
    opened = rows_of([result("plain", slow, loop="open"), result("draft", waiting, loop="open")], OBJECTIVE)
    assert opened[1]["gain"] == pytest.approx(2.0)
    assert "gain" not in opened[0]


def test_a_server_alone_has_no_gain() -> None:
    assert rows_of([result("draft", [outcome()])], OBJECTIVE)[0]["gain"] is None
    assert rows_of([result("plain", []), result("draft", [outcome(error="x")])], OBJECTIVE)[1]["gain"] is None


def test_a_gain_that_not_every_turn_has_is_none() -> None:
    rows = [
        {"loop": "closed", "target": "draft", "level": 1, "gain": 1.5, "gain_low": 1.2, "step": False},
        {"loop": "closed", "target": "draft", "level": 8, "gain": 1.05, "gain_low": 0.98, "step": False},
    ]
    assert stops_paying(rows, "closed", "draft") == 8


@pytest.mark.parametrize(
    ("gains", "level"),
    [([2, 1.5, 1.1], None), ([2, 1.0, 0.9], 2), ([0.9, 1.2, 0.8], 3), ([0.9, 0.8, 0.7], 1), ([], None)],
)
def test_where_the_draft_stops_paying(gains: list[float], level: float | None) -> None:
    rows = [
        {"loop": "closed", "target": "draft", "level": i, "gain": gain, "step": False}
        for i, gain in enumerate(gains, 1)
    ]
    rows.append({"loop": "open", "target": "draft", "level": 9, "gain": 0.1, "step": False})
    assert stops_paying(rows[::-1], "closed", "draft") == level


def test_what_was_held_ends_at_the_first_broken_step() -> None:
    good, bad = [outcome()], [outcome(ttft_s=9.0)]
    results = [result("plain", o, level, step=True) for level, o in ((1, good), (2, bad), (3, good))]
    rows = rows_of(results, OBJECTIVE)
    assert held(rows, "plain", OBJECTIVE) == 1
    assert held(rows, "draft", OBJECTIVE) is None


def test_acceptance_over_time_is_of_the_answers_that_ended_then() -> None:
    early, late = drafted(0, 8, 10, 5, e2e_s=1.0), drafted(1, 2, 10, 5, e2e_s=1.0)
    results = [result("draft", [early]), result("draft", [late], began_s=10.0), result("plain", [outcome()])]
    assert acceptance_over_time(results, "draft", bins=2) == [(pytest.approx(3.5), 0.8), (pytest.approx(8.5), 0.2)]
    assert acceptance_over_time(results, "plain") == []


def test_the_busiest_second_is_of_one_turn() -> None:
    many = [outcome(i, sent_s=0.1 * i, chunk_s=(0.2, 0.3)) for i in range(5)]
    assert busiest([result("plain", many), result("draft", many)]) == {"requests_per_s": 5, "chunks_per_s": 10}
    assert busiest([]) == {"requests_per_s": 0, "chunks_per_s": 0}
