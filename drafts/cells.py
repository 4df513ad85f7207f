"""Cells of a comparison (method × kind × concurrency × temperature × repeat) and the table rows made from them."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drafts.client import Answer, Sampling, ask_all
from drafts.looping import loops
from drafts.methods import MODEL, EngineOptions, Method, serving, settle_s
from drafts.prompts import Prompt
from server.engine_command import cpu_build_installed
from stages.progress import progress

Tokenize = Callable[[str], Sequence[int]]


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


def run_cells(
    urls: dict[str, str],
    blocks: Sequence[Block],
    max_tokens: int,
    settle_s: float = 0.0,
    forget: Callable[[], None] = lambda: None,
) -> list[Cell]:
    """Runs every block with every method, in an order of methods that shifts with every block.

    Blocks are small beside the slow drifts of a machine's speed, which therefore stay out of the ratios between
    methods. Each method first answers one prompt of every kind unmeasured. Before each turn there is a pause of ``settle_s``.

    Args:
        urls: base address by method.
        max_tokens: of an answer.
        forget: called before the first block of every condition and repeat, within which prompts are distinct.
    """
    first = list({prompt.kind: prompt for block in blocks for prompt in block.prompts}.values())
    for url in urls.values():
        asyncio.run(ask_all(url, MODEL, first, Sampling(16, 1.0), len(first)))
    cells = []
    with progress("measuring", len(blocks) * len(urls), "cells") as advance:
        for turn, block in enumerate(blocks):
            if turn == 0 or (block.condition, block.repeat) != (blocks[turn - 1].condition, blocks[turn - 1].repeat):
                forget()
            drawn = Sampling(max_tokens, block.condition.temperature, block.seed)
            for method in rotated(list(urls), turn):
                time.sleep(settle_s)
                condition = block.condition
                asked = ask_all(urls[method], MODEL, block.prompts, drawn, condition.concurrency, rate=condition.rate)
                answers, wall = asyncio.run(asked)
                cells.append(Cell(method, block.condition, turn, tuple(answers), wall))
                advance(1, note=f"{method} {block.condition.kind}")
    return cells


@dataclass(frozen=True)
class Asking:
    """What several methods are asked.

    Attributes:
        one_at_a_time: whether each method is served by itself; None: on GPUs.
    """

    blocks: tuple[Block, ...]
    max_tokens: int
    one_at_a_time: bool | None = None


def ask_methods(
    target: Path, methods: Sequence[Method], asking: Asking, logs: Path, options: EngineOptions
) -> list[Cell]:
    """Serves the methods and runs every block with each of them: side by side, or one method after the other."""
    alone = not cpu_build_installed() if asking.one_at_a_time is None else asking.one_at_a_time
    cells = []
    for together in [[method] for method in methods] if alone else [methods]:
        with serving(target, together, logs, options) as served:
            cells += run_cells(served.urls, asking.blocks, asking.max_tokens, settle_s(), served.forget)
    return cells


def rotated(names: Sequence[str], by: int) -> list[str]:
    """The names in order, beginning with the one at place ``by`` (modulo their number)."""
    start = by % len(names)
    return [*names[start:], *names[:start]]


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


def groups(cells: Sequence[Cell]) -> Iterator[tuple[str, Condition, list[Cell], list[Cell]]]:
    """(method, condition, its cells, plain's cells), both by turn."""
    for method, condition in dict.fromkeys((cell.method, cell.condition) for cell in cells):
        same = [cell for cell in cells if cell.condition == condition]
        own = sorted((c for c in same if c.method == method), key=lambda c: c.turn)
        yield method, condition, own, sorted((c for c in same if c.method == "plain"), key=lambda c: c.turn)


def acceptance(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Acceptance over all answers: ratios of sums, never averages of ratios; None where nothing was drafted."""
    records = [answer.speculation for answer in answers if answer.speculation]
    drafts = sum(r.num_drafts for r in records)
    proposed = sum(r.num_draft_tokens for r in records)
    accepted = sum(r.num_accepted_tokens for r in records)
    return {
        "num_drafts": drafts,
        "num_draft_tokens": proposed,
        "num_accepted_tokens": accepted,
        "acceptance_rate": accepted / proposed if proposed else None,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
    }


def histogram(answers: Sequence[Answer]) -> list[int]:
    """Steps that accepted exactly 0, 1, … tokens, summed over the answers."""
    rows = [answer.speculation.histogram for answer in answers if answer.speculation]
    width = max(map(len, rows), default=0)
    return [sum(row[i] for row in rows if i < len(row)) for i in range(width)]


def _rate(cells: Sequence[Cell]) -> float:
    """Output tokens per second of wall time, over all cells."""
    return sum(cell.num_tokens for cell in cells) / sum(cell.wall_s for cell in cells)


def faster(own: Sequence[Cell], plain: Sequence[Cell]) -> float:
    """Speed-up in a closed loop: ratio of output tokens per second of wall time, first tokens included."""
    return _rate(own) / _rate(plain)


def _seconds_per_token(cells: Sequence[Cell]) -> float:
    """Seconds of requests, from their arrival to their last token, for each output token."""
    answers = [answer for cell in cells for answer in cell.answers]
    return sum(answer.e2e_s for answer in answers) / sum(answer.completion_tokens for answer in answers)


def _sooner(own: Sequence[Cell], plain: Sequence[Cell]) -> float:
    """Ratio of request times for each output token: sampled answers differ in length from method to method."""
    return _seconds_per_token(plain) / _seconds_per_token(own)


def _rate_without(cells: Sequence[Cell], left_out: Sequence[set[str]]) -> float | None:
    """Output tokens per second of request time, over the answers whose prompts are not left out in that turn."""
    kept = [
        answer
        for cell, looping in zip(cells, left_out, strict=True)
        for answer in cell.answers
        if answer.prompt_id not in looping
    ]
    seconds = sum(answer.e2e_s for answer in kept)
    return sum(answer.completion_tokens for answer in kept) / seconds if seconds else None


def _without_loops(own: Sequence[Cell], plain: Sequence[Cell], looping: Sequence[set[str]]) -> float | None:
    """What leaving prompts out changes about the ratio of rates to plain's; 1 if there are none, None if nothing else is left."""
    nothing: list[set[str]] = [set()] * len(own)
    rates = [_rate_without(cells, left_out) for left_out in (looping, nothing) for cells in (own, plain)]
    if not all(rates):
        return None
    calm, base_calm, everything, base = (rate for rate in rates if rate)
    return (calm / base_calm) / (everything / base)


def _looping(cells: Sequence[Cell], tokenize: Tokenize) -> list[set[str]]:
    """The prompts of each cell whose output loops."""
    return [{answer.prompt_id for answer in cell.answers if loops(tokenize(answer.text))} for cell in cells]


def row_of(method: str, condition: Condition, own: list[Cell], plain: list[Cell], tokenize: Tokenize) -> dict[str, Any]:
    """One row of the table.

    ``speedup`` is tokens per second over plain's, both over all turns; low and high are the extremes of single turns. In
    an open loop, where arrivals set the tokens per second, it is plain's time of requests for each output token over this method's.
    ``speedup_without_loops`` leaves out the prompts whose output looped with either method in that turn: ``speedup``, times what
    that changes about tokens per second of request time.
    ``identical_outputs`` compares texts of equal prompts with plain's in the same turn (greedy only).
    """
    answers = [answer for cell in own for answer in cell.answers]
    gain = faster if condition.rate is None else _sooner
    ratios = [gain([cell], [base]) for cell, base in zip(own, plain, strict=True)]
    looping = _looping(own, tokenize)
    either = [mine | theirs for mine, theirs in zip(looping, _looping(plain, tokenize), strict=True)]
    overall = gain(own, plain)
    pairs = [
        (a, b) for cell, base in zip(own, plain, strict=True) for a, b in zip(cell.answers, base.answers, strict=True)
    ]
    tpots = [answer.tpot_s for answer in answers if answer.tpot_s is not None]
    num_prompts = len({answer.prompt_id for answer in answers})
    return {
        "method": method, "kind": condition.kind, "concurrency": condition.concurrency,
        "temperature": condition.temperature, "rate": condition.rate, "num_prompts": num_prompts,
        "repeats": len(answers) // num_prompts, "turns": len(own),
        "output_tokens_per_s": _rate(own),
        "tpot_s": statistics.median(tpots) if tpots else None,
        "ttft_s": statistics.median(answer.ttft_s for answer in answers),
        "e2e_s": statistics.median(answer.e2e_s for answer in answers),
        "e2e_s_per_token": _seconds_per_token(own),
        "speedup": overall, "speedup_low": min(ratios), "speedup_high": max(ratios),
        "speedup_without_loops": overall * change if (change := _without_loops(own, plain, either)) else None,
        **acceptance(answers), "acceptance_histogram": histogram(answers),
        "identical_outputs": sum(a.text == b.text for a, b in pairs) / len(pairs) if condition.temperature == 0 else None,
        "looping_outputs": sum(map(len, looping)) / len(answers),
        "output_tokens": sum(answer.completion_tokens for answer in answers),
    }  # fmt: skip


def rows_of(cells: Sequence[Cell], tokenize: Tokenize) -> list[dict[str, Any]]:
    """All rows of the table; plain must be among the methods."""
    return [row_of(method, condition, own, plain, tokenize) for method, condition, own, plain in groups(cells)]


def differing(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Greedy answers that are not plain's, each prompt and method once: {method, prompt_id, kind, text, plain_text}."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for method, condition, own, plain in groups(cells):
        if condition.temperature != 0 or method == "plain":
            continue
        for cell, base in zip(own, plain, strict=True):
            for a, b in zip(cell.answers, base.answers, strict=True):
                if a.text != b.text:
                    record = {
                        "method": method,
                        "prompt_id": a.prompt_id,
                        "kind": a.kind,
                        "concurrency": condition.concurrency,
                    }
                    found.setdefault((method, a.prompt_id), {**record, "text": a.text, "plain_text": b.text})
    return list(found.values())
