"""What the methods of a comparison are asked, in blocks, and the cells that come of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drafts.client import Answer
from drafts.prompts import Prompt


@dataclass(frozen=True)
class Condition:
    """What a cell is measured under, besides the method.

    Attributes:
        rate: arrivals per second of an open loop, of which ``concurrency`` at most are under way; None is a closed loop.
    """

    kind: str
    concurrency: int
    temperature: float
    rate: float | None = None


@dataclass(frozen=True)
class Cell:
    """A block of prompts of one kind answered once by one method under one condition.

    Attributes:
        turn: blocks count on through all repeats; cells of one condition and turn had the same prompts and seeds.
    """

    method: str
    condition: Condition
    turn: int
    answers: tuple[Answer, ...]
    wall_s: float

    @property
    def num_tokens(self) -> int:
        """Output tokens of all answers."""
        return sum(answer.completion_tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second of wall time."""
        return self.num_tokens / self.wall_s


SHORT = 4
"""Requests at a time up to which a turn lasts long enough not to be repeated more often than asked."""


@dataclass(frozen=True)
class Block:
    """Prompts that every method answers once, one method after the other.

    Attributes:
        seed: of the first prompt; the others count on.
        repeat: which time around the condition's prompts are asked.
    """

    condition: Condition
    prompts: tuple[Prompt, ...]
    seed: int
    repeat: int = 0

    def same_pass(self, other: Block) -> bool:
        """Whether both belong to one time around one condition's prompts, which are distinct within it."""
        return (self.condition, self.repeat) == (other.condition, other.repeat)


def blocks_of(
    prompts: Sequence[Prompt], conditions: Sequence[Condition], repeats: int, block_size: int, seed: int
) -> list[Block]:
    """Every condition's prompts in blocks, all of it several times with other seeds.

    Args:
        repeats: how often at up to ``SHORT`` requests at a time; twice as often at up to twice as many, and so on, because turns
            get shorter, and the machine's noise in them larger. An open loop takes its own time and is repeated as given.
        block_size: prompts of a block, rounded up to whole waves of a condition's requests at a time, or there would not be as many
            under way as it says; what is left over at the end joins the last block.
    """
    return [
        Block(condition, part, seed + 10_000 * repeat + start, repeat)
        for repeat in range(repeats * max(map(_more_often, conditions), default=1))
        for condition in conditions
        if repeat < repeats * _more_often(condition)
        for start, part in _parts([p for p in prompts if p.kind == condition.kind], condition.concurrency, block_size)
    ]


def _more_often(condition: Condition) -> int:
    return 1 if condition.rate is not None else math.ceil(condition.concurrency / SHORT)


def _parts(prompts: Sequence[Prompt], concurrency: int, block_size: int) -> Iterator[tuple[int, tuple[Prompt, ...]]]:
    """(place of its first prompt, prompts) of every block of one condition."""
    size = math.ceil(block_size / concurrency) * concurrency
    starts = list(range(0, max(len(prompts) - concurrency, 0) + 1, size)) or [0]
    for start, end in zip(starts, [*starts[1:], len(prompts)], strict=True):
        yield start, tuple(prompts[start:end])


def conditions_of(
    prompts: Sequence[Prompt],
    concurrencies: Sequence[int],
    temperatures: Sequence[float],
    rates: Sequence[float] = (),
) -> list[Condition]:
    """Every combination of the prompts' kinds and temperatures with the closed loops and the open ones.

    Args:
        rates: arrivals per second of open loops; the largest concurrency bounds what is under way.
    """
    kinds = sorted({prompt.kind for prompt in prompts})
    loads = [(n, None) for n in concurrencies] + [(max(concurrencies), rate) for rate in rates]
    return [Condition(k, n, t, rate) for k in kinds for n, rate in loads for t in temperatures]
