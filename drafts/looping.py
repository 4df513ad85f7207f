"""Finds outputs that loop. A target that loops makes any draft look good, so every table reports their share."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PERIOD = 48
MIN_REPEATS = 3
MIN_TOKENS = 24


def loops(
    tokens: Sequence[int], max_period: int = MAX_PERIOD, min_repeats: int = MIN_REPEATS, min_tokens: int = MIN_TOKENS
) -> bool:
    """True when somewhere a span of at most ``max_period`` tokens follows itself often enough.

    "Often enough" is at least ``min_repeats`` times in a row and over at least ``min_tokens`` tokens together.
    A period p repeats where ``tokens[i] == tokens[i - p]``; a run of m such positions is m + p repeated tokens.
    """
    for period in range(1, min(max_period, len(tokens) // min_repeats) + 1):
        wanted = max(min_repeats * period, min_tokens) - period
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= wanted:
                return True
    return False
