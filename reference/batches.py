"""Training batches: windows of text, and rows whose repeated tokens are judged (spans repeated on purpose, or own loops)."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reference.data import Windows


@dataclass(frozen=True)
class LoopingOutput:
    """One of the target's own outputs that loops: token ids, and where ``ids[i] == ids[i - period]``."""

    ids: tuple[int, ...]
    period: int
    first: int
    count: int


def read_looping_outputs(path: Path) -> list[LoopingOutput]:
    """Reads what ``reference.looping_outputs`` wrote."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [LoopingOutput(tuple(row["ids"]), row["period"], row["first"], row["count"]) for row in rows]


Row = tuple[np.ndarray, np.ndarray]


def repeat_span(window: np.ndarray, rng: random.Random) -> Row:
    """A span of 4–40 tokens of the window repeated to its end: ids [T] and previous [T] (see ``target_loss``)."""
    length = len(window)
    previous = np.full(length, -1)
    period, start = rng.randint(4, 40), rng.randint(0, length - 48)
    prefix = rng.randint(0, start)
    line = np.concatenate([window[start - prefix : start], np.tile(window[start : start + period], 128)])
    previous[prefix + period : -1] = np.arange(prefix, length - period - 1)
    return line[:length], previous


def loop_row(output: LoopingOutput, length: int) -> Row:
    """The last ``length`` tokens of an output that loops: ids [T] (zeros after its end) and previous [T]."""
    cut = max(len(output.ids) - length, 0)
    ids, previous = np.zeros(length, dtype=np.int64), np.full(length, -1)
    ids[: len(output.ids) - cut] = output.ids[cut:]
    for place in range(output.first - cut - 1, output.first + output.count - cut - 1):
        if place >= output.period:
            previous[place] = place - output.period
    return ids, previous


def make_batch(
    windows: Windows, rows: int, ditto_rows: int, rng: random.Random, looping: list[LoopingOutput] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``rows`` windows; the last ``ditto_rows`` become repeated spans, or outputs that loop where given."""
    drawn = np.stack([windows.next() for _ in range(rows)])
    ids, labels = drawn[:, :-1].copy(), drawn[:, 1:].copy()
    previous = np.full_like(ids, -1)
    for row in range(rows - ditto_rows, rows):
        labels[row] = -100
        made = loop_row(rng.choice(looping), ids.shape[1]) if looping else repeat_span(ids[row].copy(), rng)
        ids[row], previous[row] = made
    return torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(previous)
