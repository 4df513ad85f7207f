"""Training text: the calibration's samples cut into windows of tokens, in batches of like length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from pruning.calibration import Batch, Sample, pad, token_ids
from stages.errors import InputError
from stages.hashing import value_hash

Window = tuple[int, ...]
"""Token ids of one piece of text, at least two."""


def windows(samples: Sequence[Sample], tokenizer: Any, length: int) -> list[Window]:
    """All samples as token ids, long ones cut into windows of ``length``; single left-over tokens are dropped."""
    found: list[Window] = []
    for sample in samples:
        ids = token_ids(sample, tokenizer)
        found += [tuple(ids[start : start + length]) for start in range(0, len(ids) - 1, length)]
    return [window for window in found if len(window) > 1]


def split(found: Sequence[Window], check_share: float, batch_tokens: int) -> tuple[list[Window], list[Window]]:
    """Windows to train on and to check on; by each window's hash, whatever else is there.

    Raises:
        InputError: too little text to fill one batch, with how many tokens there are and how many are needed.
    """
    training: list[Window] = []
    check: list[Window] = []
    for window in found:
        kept_out = int(value_hash(window)[:8], 16) / 2**32 < check_share
        (check if kept_out else training).append(window)
    num_tokens = sum(map(len, training))
    if num_tokens < batch_tokens:
        raise InputError(
            f"the calibration text has {num_tokens} tokens to train on, {batch_tokens} are needed (one batch): "
            "add text or lower batch_tokens"
        )
    return training, check


def groups_of(found: Sequence[Window], batch_tokens: int, draw: random.Random) -> list[list[Window]]:
    """Windows of like length together, at most ``batch_tokens`` padded tokens each; order within equal lengths is drawn."""
    groups: list[list[Window]] = []
    for window in sorted(found, key=lambda window: (-(len(window) // 16), draw.random())):
        longest = max(len(window), max(map(len, groups[-1])) if groups else 0)
        if not groups or (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
        groups[-1].append(window)
    return groups


def epoch(found: Sequence[Window], batch_tokens: int, seed: int, number: int) -> Iterator[Batch]:
    """One epoch of batches in random order, the same for the same seed and number."""
    draw = random.Random(f"{seed}-{number}")
    groups = groups_of(found, batch_tokens, draw)
    draw.shuffle(groups)
    for group in groups:
        yield pad(group)
