"""What the methods of a comparison are asked, in blocks, and the cells that come of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    repeats: int,
    block_size: int,
    seed: int,
    waves: int = 1,
) -> list[Block]:
    """Every condition's prompts in blocks, all of it several times with other seeds.

    Args:
        repeats: how often; twice as often where one block holds all prompts of a condition, for there to be two turns to compare.
        block_size: prompts of a block; what is left over at the end joins the last block if it is less than half a block. An open
            loop is one block.
        waves: where several requests are asked at a time, a block has at least so many times as many, because at its end fewer
            and fewer are under way.
    """
    own = {condition: [prompt for prompt in prompts if prompt.kind == condition.kind] for condition in conditions}
    parts = {condition: _parts(own[condition], condition, block_size, waves) for condition in conditions}
    return [
        Block(condition, part, seed + 10_000 * repeat + start, repeat)
        for repeat in range(2 * repeats)
        for condition in conditions
        if repeat < repeats * (2 if len(parts[condition]) == 1 else 1)
        for start, part in parts[condition]
    ]


def _parts(
    prompts: Sequence[Prompt], condition: Condition, block_size: int, waves: int
) -> list[tuple[int, tuple[Prompt, ...]]]:
    """(place of its first prompt, prompts) of every block of one condition."""
    wave = condition.concurrency
    size = block_size if wave == 1 else max(math.ceil(block_size / wave), waves) * wave
    if condition.rate is not None:
        size = len(prompts)
    starts = list(range(0, max(len(prompts) - max(size // 2, 1), 0) + 1, max(size, 1)))
    ends = [*starts[1:], len(prompts)]
    return [(start, tuple(prompts[start:end])) for start, end in zip(starts, ends, strict=True)]


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
