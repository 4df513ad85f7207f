"""What one request's answer tells about speculation: the engine's record, read tolerantly into a frozen one.

The engine calls its record experimental, so nothing here insists on fields that are not needed, and a record that
is not there or not understood is `Missing`, never a zero.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Missing(enum.Enum):
    """Why a request that should have an acceptance record has none."""

    ABSENT = "absent"
    """The engine gave none: several sequences in one request, an answer that ended at a stop string (its usage is cut
    back to what was kept, too), a route without records (``/v1/responses``), or an engine without per-request records."""
    MALFORMED = "malformed"
    """There was one, and it was not understood."""
    CANCELLED = "cancelled"
    """The client left before the end; the engine's own counters hold the steps, the record is lost."""
    FAILED = "failed"
    """The engine's answer broke off."""


@dataclass(frozen=True)
class AcceptanceRecord:
    """Speculation of one request, in counts; the rest is derived."""

    num_drafts: int
    num_draft_tokens: int
    num_accepted_tokens: int
    histogram: tuple[int, ...] = ()
    """Drafts by how many of their tokens were accepted, from none upwards; empty where the engine does not say."""

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / draft tokens; undefined without draft tokens."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / drafts, the bonus token included; undefined without drafts."""
        return 1 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    output_tokens: int


def _count(record: dict[str, Any], key: str) -> int | None:
    value = record.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _histogram(record: dict[str, Any], drafts: int, accepted: int) -> tuple[int, ...]:
    """The engine's histogram where it agrees with its counts."""
    found = record.get("acceptance_histogram")
    if not isinstance(found, list) or not all(type(count) is int and count >= 0 for count in found):
        return ()
    agrees = sum(found) == drafts and sum(index * count for index, count in enumerate(found)) == accepted
    return tuple(found) if agrees else ()


def read_acceptance(payload: dict[str, Any]) -> AcceptanceRecord | Missing:
    """The acceptance record in a response body or in a stream's usage chunk."""
    metrics = payload.get("metrics")
    record = metrics.get("speculative_decoding") if isinstance(metrics, dict) else None
    if record is None:
        return Missing.ABSENT
    if not isinstance(record, dict):
        return Missing.MALFORMED
    drafts, drafted = _count(record, "num_spec_steps"), _count(record, "num_draft_tokens")
    accepted = _count(record, "num_accepted_draft_tokens")
    if drafts is None or drafted is None or accepted is None or accepted > drafted:
        return Missing.MALFORMED
    return AcceptanceRecord(drafts, drafted, accepted, _histogram(record, drafts, accepted))


def read_usage(payload: dict[str, Any]) -> Usage | None:
    """The token counts in a response body or in a stream's usage chunk."""
    usage = payload.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, output = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    return Usage(prompt or 0, output) if output is not None else None


def is_usage_chunk(payload: dict[str, Any]) -> bool:
    """True for the chunk that ends a stream with usage alone: no choices in it."""
    return payload.get("choices") == [] and isinstance(payload.get("usage"), dict)
