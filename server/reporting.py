"""What clients are told of speculation in their own request: two counts in ``usage``, and a header."""

from __future__ import annotations

from typing import Any

from server.acceptance import AcceptanceRecord
from server.json_text import JsonText

HEADER = "x-understudy-acceptance"
"""Of answers in one piece only: a stream's headers are gone before its first token, and OpenAI's clients read no trailers.
Streams tell the same in the usage chunk of clients that asked for it."""


def header_value(record: AcceptanceRecord) -> str:
    """The record as a dictionary of HTTP's structured fields: ``drafts=5, draft-tokens=15, accepted-tokens=6, ...``."""
    parts = [
        f"drafts={record.num_drafts}",
        f"draft-tokens={record.num_draft_tokens}",
        f"accepted-tokens={record.num_accepted_tokens}",
    ]
    if record.mean_acceptance_length is not None:
        parts.append(f"mean-acceptance-length={record.mean_acceptance_length:.3f}")
    return ", ".join(parts)


def _details(usage: dict[str, Any], record: AcceptanceRecord) -> dict[str, Any]:
    """``completion_tokens_details`` with OpenAI's two counts; what the engine has filled in itself stays."""
    given = usage.get("completion_tokens_details")
    filled = {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else {}
    rejected = record.num_draft_tokens - record.num_accepted_tokens
    counts = {"accepted_prediction_tokens": record.num_accepted_tokens, "rejected_prediction_tokens": rejected}
    return {**(given if isinstance(given, dict) else {}), **counts, **filled}


def with_details(body: JsonText, record: object) -> bytes | None:
    """The body of an answer, or a usage chunk, with the counts in its usage; every other byte stays.

    Returns:
        None where there is nothing to say: without a record nothing is added, least of all zeros.
    """
    usage = body.values.get("usage")
    if not isinstance(record, AcceptanceRecord) or not isinstance(usage, dict):
        return None
    try:
        return body.replaced("usage", {**usage, "completion_tokens_details": _details(usage, record)})
    except ValueError:
        return None


def event_with_details(event: bytes, data: bytes, body: JsonText, record: object) -> bytes:
    """An event of a stream whose ``data`` is a usage chunk, with the counts in it; unchanged where that cannot be."""
    told = with_details(body, record)
    start = event.find(data)
    if told is None or start < 0:
        return event
    return event[:start] + told + event[start + len(data) :]
