from __future__ import annotations

import json
from typing import Any

import pytest

from server.acceptance import AcceptanceRecord, Missing
from server.json_text import JsonText
from server.reporting import event_with_details, header_value, with_details

RECORD = AcceptanceRecord(5, 15, 6)


def told(body: dict[str, Any], record: object = RECORD) -> bytes | None:
    read = JsonText.read(json.dumps(body).encode())
    assert read is not None
    return with_details(read, record)


def details(usage: dict[str, Any]) -> dict[str, Any]:
    rewritten = told({"usage": usage})
    assert rewritten is not None
    return json.loads(rewritten)["usage"]["completion_tokens_details"]


def test_accepted_and_rejected_are_all_draft_tokens() -> None:
    assert details({"completion_tokens": 9}) == {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 9}


def test_what_the_engine_says_itself_stays() -> None:
    given = {"reasoning_tokens": 3, "accepted_prediction_tokens": 1, "rejected_prediction_tokens": None}
    assert details({"completion_tokens_details": given}) == {**given, "rejected_prediction_tokens": 9}
    assert details({"completion_tokens_details": None})["accepted_prediction_tokens"] == 6


@pytest.mark.parametrize("missing", Missing)
def test_without_a_record_nothing_is_said(missing: Missing) -> None:
    assert told({"usage": {"completion_tokens": 9}}, missing) is None


@pytest.mark.parametrize("body", [{}, {"usage": None}, {"usage": 3}])
def test_without_usage_nothing_is_said(body: dict[str, Any]) -> None:
    assert told(body) is None


def test_a_usage_that_cannot_be_written_again_stays() -> None:
    body = JsonText.read(b'{"usage": {"x": 1e999}}')
    assert body is not None
    assert with_details(body, RECORD) is None


@pytest.mark.parametrize("event", [b"data: %s\n\n", b"id: 3\r\ndata:%s\r\n\r\n", b": note\ndata: %s\nretry: 1\n\n"])
def test_the_rest_of_an_event_stays(event: bytes) -> None:
    data = b'{"choices":[],"usage":{}}'
    chunk = JsonText.read(data)
    assert chunk is not None
    counts = b'{"completion_tokens_details":{"accepted_prediction_tokens":6,"rejected_prediction_tokens":9}}'
    assert event_with_details(event % data, data, chunk, RECORD) == event % (b'{"choices":[],"usage":%s}' % counts)
    assert event_with_details(event % data, data, chunk, Missing.ABSENT) == event % data


def test_data_over_several_lines_stays_as_it_is() -> None:
    event, data = b'data: {"choices":[],\ndata: "usage":{}}\n\n', b'{"choices":[],\n"usage":{}}'
    chunk = JsonText.read(data)
    assert chunk is not None
    assert event_with_details(event, data, chunk, RECORD) == event


def test_the_header_leaves_out_what_is_undefined() -> None:
    assert header_value(AcceptanceRecord(0, 0, 0)) == "drafts=0, draft-tokens=0, accepted-tokens=0"
