"""Finds outputs that loop. A target that loops makes any draft look good, so every table reports their share."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PERIOD = 48
MIN_REPEATS = 3
MIN_TOKENS = 24


def find_loop(
    tokens: Sequence[int], max_period: int = MAX_PERIOD, min_repeats: int = MIN_REPEATS, min_tokens: int = MIN_TOKENS
) -> tuple[int, range] | None:
    """The first loop of the smallest period: its period p and the positions i with ``tokens[i] == tokens[i - p]``.

    A loop is a span of at most ``max_period`` tokens that follows itself at least ``min_repeats`` times in a row, over
    at least ``min_tokens`` tokens together. A run of m positions repeats m + p tokens.
    """
    for period in range(1, min(max_period, len(tokens) // min_repeats) + 1):
        wanted = max(min_repeats * period, min_tokens) - period
        run = 0
        for i in range(period, len(tokens) + 1):
            if i < len(tokens) and tokens[i] == tokens[i - period]:
                run += 1
                continue
            if run >= wanted:
                return period, range(i - run, i)
            run = 0
    return None


def loops(
    tokens: Sequence[int], max_period: int = MAX_PERIOD, min_repeats: int = MIN_REPEATS, min_tokens: int = MIN_TOKENS
) -> bool:
    """True when the tokens hold a loop (``find_loop``)."""
    return find_loop(tokens, max_period, min_repeats, min_tokens) is not None
