"""What the live page shows of the last minutes: pure accumulators over finished requests, and the figures from them."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from server.acceptance import AcceptanceRecord
from server.exchange import Exchange
from server.sliding import SlidingSums

WINDOW_S = 60.0
"""Of the rates."""
ACCEPTANCE_WINDOW_S = 300.0
"""Of acceptance and times per token, which are means over requests."""


def accepted_by_position(record: AcceptanceRecord) -> list[int]:
    """How many drafts had their first token accepted, their first two, and so on."""
    falling = list(accumulate(reversed(record.histogram)))
    return falling[::-1][1:]


class Throughput:
    """Requests and output tokens a second. Tokens count when their request ends, which is when they are known exactly."""

    def __init__(self) -> None:
        self._sums = SlidingSums(WINDOW_S)

    def see(self, now: float, exchange: Exchange) -> None:
        """Takes a finished request in."""
        self._sums.add(now, 1, exchange.usage.output_tokens if exchange.usage else 0)

    def as_dict(self, now: float) -> dict[str, float]:
        """Rates over the window, as far as it has been seen."""
        requests, tokens = self._sums.sums(now) or (0.0, 0.0)
        over_s = max(1.0, min(WINDOW_S, self._sums.covered_s(now)))
        return {"requests_per_s": requests / over_s, "output_tokens_per_s": tokens / over_s, "window_s": WINDOW_S}


class PoolFigures:
    """Acceptance and time per output token of one pool."""

    def __init__(self) -> None:
        self._counts = SlidingSums(ACCEPTANCE_WINDOW_S)
        self._positions = SlidingSums(ACCEPTANCE_WINDOW_S)
        self._tpot = SlidingSums(ACCEPTANCE_WINDOW_S)

    def see(self, now: float, exchange: Exchange) -> None:
        """Takes a finished request in."""
        record = exchange.acceptance
        if isinstance(record, AcceptanceRecord) and record.num_drafts:
            self._counts.add(now, record.num_drafts, record.num_draft_tokens, record.num_accepted_tokens)
            if record.histogram:
                self._positions.add(now, record.num_drafts, *accepted_by_position(record))
        if exchange.succeeded and exchange.tpot_s is not None:
            self._tpot.add(now, 1, exchange.tpot_s)

    def tpot_s(self, now: float) -> float | None:
        """Mean time per output token of streams."""
        streams, seconds = self._tpot.sums(now) or (0.0, 0.0)
        return seconds / streams if streams else None

    def as_dict(self, now: float) -> dict[str, Any]:
        """The figures; None where nothing was seen, never zero."""
        drafts, drafted, accepted = self._counts.sums(now) or (0.0, 0.0, 0.0)
        told, *positions = self._positions.sums(now) or (0.0,)
        return {
            "drafts": int(drafts),
            "draft_tokens_per_draft": drafted / drafts if drafts else None,
            "acceptance_rate": accepted / drafted if drafted else None,
            "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
            "acceptance_by_position": [count / told for count in positions] if told else [],
            "tpot_s": self.tpot_s(now),
        }


def speedups(
    expected: float | None, expected_length: float | None, length: float | None,
    tpot_s: float | None, plain_tpot_s: float | None,
) -> dict[str, float | None]:  # fmt: skip
    """A draft's speed-up, expected and seen.

    ``from_acceptance`` is the expected one scaled by the acceptance length that is seen: it holds for the load and the step
    costs that the expected one was measured with. ``measured`` compares times per output token with a plain pool's, on
    whatever requests each of them got.
    """
    known = expected is not None and expected_length is not None and length is not None
    return {
        "expected": expected,
        "from_acceptance": expected * length / expected_length if known else None,  # type: ignore[operator]
        "measured": plain_tpot_s / tpot_s if tpot_s and plain_tpot_s else None,
    }
