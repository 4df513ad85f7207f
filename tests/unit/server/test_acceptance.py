from __future__ import annotations

from typing import Any

import pytest

from server.acceptance import AcceptanceRecord, Missing, Usage, is_usage_chunk, read_acceptance, read_usage

RECORD = {
    "mean_acceptance_length": 1.38, "draft_acceptance_rate": 0.0956, "acceptance_histogram": [24, 9, 0, 0, 1],
    "num_spec_steps": 34, "num_accepted_draft_tokens": 13, "num_draft_tokens": 136, "num_spec_tokens": 4,
}  # fmt: skip


def payload(record: Any) -> dict[str, Any]:
    return {"metrics": {"speculative_decoding": record, "time_to_first_token_ms": None}}


def test_the_record_is_kept_in_counts_and_the_rest_derived() -> None:
    record = read_acceptance(payload(RECORD))
    assert record == AcceptanceRecord(34, 136, 13, (24, 9, 0, 0, 1))
    assert record.acceptance_rate == 13 / 136
    assert record.mean_acceptance_length == 1 + 13 / 34


def test_unknown_fields_are_no_obstacle() -> None:
    assert isinstance(read_acceptance(payload({**RECORD, "new": [1]})), AcceptanceRecord)


@pytest.mark.parametrize("histogram", [None, "24", [24, 9], [24, 9, 0, 0, True], [25, 8, 0, 0, 1], [35, -1]])
def test_a_histogram_that_disagrees_with_the_counts_is_left_out(histogram: Any) -> None:
    assert read_acceptance(payload({**RECORD, "acceptance_histogram": histogram})) == AcceptanceRecord(34, 136, 13)


@pytest.mark.parametrize("body", [{}, {"metrics": None}, {"metrics": []}, {"metrics": {}}, payload(None)])
def test_no_record_is_missing_and_never_a_zero(body: dict[str, Any]) -> None:
    assert read_acceptance(body) is Missing.ABSENT


@pytest.mark.parametrize(
    "change",
    [{"num_spec_steps": None}, {"num_spec_steps": "34"}, {"num_draft_tokens": -1}, {"num_draft_tokens": 12.5},
     {"num_accepted_draft_tokens": True}, {"num_accepted_draft_tokens": 137}],
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_missing(change: dict[str, Any]) -> None:
    assert read_acceptance(payload({**RECORD, **change})) is Missing.MALFORMED
    assert read_acceptance(payload([1])) is Missing.MALFORMED


def test_figures_without_drafts_are_undefined() -> None:
    record = AcceptanceRecord(0, 0, 0)
    assert (record.acceptance_rate, record.mean_acceptance_length) == (None, None)


def test_usage_and_the_chunk_that_holds_it_alone() -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}
    assert read_usage(chunk) == Usage(3, 5)
    assert is_usage_chunk(chunk)
    assert not is_usage_chunk({**chunk, "choices": [{"index": 0}]})
    assert not is_usage_chunk({"choices": [], "usage": None})
    assert read_usage({"usage": {"prompt_tokens": 3}}) is None
