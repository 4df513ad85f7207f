import json

import pytest

from loadtests.answers import Reading, carries_output, parse_speculation
from loadtests.settings import Objective
from tests.unit.loadtests.asking import outcome, request
from tests.unit.server.answers import BODY, ONE, RECORD, ROLE, TWO, USAGE

DATA = [event.removeprefix(b"data: ").strip() for event in (ROLE, ONE, TWO, USAGE, b"data: [DONE]\n\n")]


def read(events: list[bytes], times: list[float], due_s: float = 0.0) -> Reading:
    reading = Reading(request(), due_s, due_s + 0.5)
    for data, at_s in zip(events, times, strict=True):
        reading.note(data, at_s)
    return reading


def test_times_are_from_when_it_was_due_to_output_and_not_to_the_role() -> None:
    found = read(DATA, [1.2, 2.0, 3.1, 3.2, 3.3], due_s=1.0).outcome(9.0)
    assert (found.ttft_s, found.e2e_s, found.late_s) == pytest.approx((1.0, 2.1, 0.5))
    assert found.gaps_s == pytest.approx((1.1,))
    assert found.completion_tokens == 12
    assert found.tpot_s == pytest.approx((2.1 - 1.0) / 11)  # from usage: the two chunks carried 12 tokens
    assert found.speculation is not None
    assert found.acceptance_rate == pytest.approx(6 / 15)
    assert found.error == ""


def test_an_answer_in_one_piece_has_no_times_of_its_own() -> None:
    reading = Reading(request(stream=False), 0.0, 0.0)
    reading.note_whole(BODY, 2.0)
    found = reading.outcome(2.0)
    assert (found.ttft_s, found.tpot_s, found.e2e_s, found.completion_tokens) == (None, None, 2.0, 12)
    assert found.acceptance_rate == pytest.approx(0.4)


def test_without_usage_there_is_no_time_per_token() -> None:
    found = read([DATA[1], DATA[2], DATA[4]], [1.0, 2.0, 2.0]).outcome(2.0)
    assert (found.ttft_s, found.completion_tokens, found.tpot_s) == (1.0, None, None)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([DATA[1]], "broke off"),
        (
            [DATA[1], b'{"error": {"message": "secret prompt", "type": "overloaded", "code": 503}}'],
            "stream: overloaded 503",
        ),
        ([b"not json", DATA[4]], "no JSON object"),
        ([b"[1]", DATA[4]], "no JSON object"),
    ],
)
def test_a_broken_stream_is_an_error_without_figures_or_texts(events: list[bytes], said: str) -> None:
    found = read(events, [1.0 + i for i in range(len(events))]).outcome(5.0)
    assert said in found.error
    assert "secret" not in found.error
    assert (found.ttft_s, found.tpot_s) == (None, None)
    assert not found.is_good(Objective())


@pytest.mark.parametrize(
    "record", [None, {}, {"speculative_decoding": None}, {"speculative_decoding": {"num_spec_steps": "x"}}]
)
def test_a_record_that_cannot_be_read_is_none_and_not_zero(record: object) -> None:
    assert parse_speculation({"metrics": record}) is None
    assert parse_speculation({"metrics": RECORD}) is not None


def test_what_counts_as_output() -> None:
    assert carries_output({"text": "a"})
    assert carries_output({"delta": {"reasoning_content": "a"}})
    assert carries_output({"delta": {"tool_calls": [{}]}})
    assert not carries_output({"delta": {"role": "assistant", "content": ""}})
    assert not carries_output({"delta": {}, "finish_reason": "stop"})
    assert not carries_output(json.loads("null"))


def test_the_objective() -> None:
    objective = Objective(ttft_s=0.2, tpot_s=0.1)
    assert outcome().is_good(objective)  # 0.1 s, then 0.1 s a token
    assert not outcome(ttft_s=0.3).is_good(objective)
    assert not outcome(e2e_s=1.2).is_good(objective)
    assert outcome(completion_tokens=1).is_good(objective)
    whole = outcome(ttft_s=None, e2e_s=1.2)
    assert whole.is_good(objective)  # a stream of 11 tokens might take 0.2 + 10 * 0.1 s
    assert not outcome(ttft_s=None, e2e_s=1.3).is_good(objective)
    assert not outcome(error="HTTP 500").is_good(objective)
