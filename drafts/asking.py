"""Asks the methods of a comparison, in turns, and keeps what they answered and how fast."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from drafts.blocks import Block, Cell, Condition
from drafts.client import Sampling, ask_all
from drafts.methods import MODEL, EngineOptions, Method, serving, settle_s
from drafts.saved_cells import SavedCells
from server.engine_command import cpu_build_installed
from stages.progress import log, progress


def run_cells(
    urls: dict[str, str],
    blocks: Sequence[Block],
    max_tokens: int,
    settle_s: float = 0.0,
    forget: Callable[[], None] = lambda: None,
    begin: int = 0,
    keep: Callable[[Cell], None] = lambda _: None,
    ignore_eos: bool = False,
) -> list[Cell]:
    """Runs every block with every method, in an order of methods that changes with every block (``orders_of``).

    Blocks are small beside the slow drifts of a machine's speed, which therefore stay out of the ratios between
    methods. Each method first answers one prompt of every kind unmeasured. Before each turn there is a pause of ``settle_s``.

    Args:
        urls: base address by method.
        max_tokens: of an answer.
        forget: called before the first block of every condition and repeat, within which prompts are distinct.
        begin: the first turn that is run, the first one of a condition and repeat.
        keep: is given every cell as soon as it is there.
        ignore_eos: see ``Sampling``.
    """
    first = list({prompt.kind: prompt for block in blocks for prompt in block.prompts}.values())
    for url in urls.values():
        asyncio.run(ask_all(url, MODEL, first, Sampling(16, 1.0), len(first)))
    cells, orders = [], orders_of(list(urls), blocks)
    with progress("measuring", (len(blocks) - begin) * len(urls), "cells") as advance:
        for turn, block in list(enumerate(blocks))[begin:]:
            if turn == 0 or not block.same_pass(blocks[turn - 1]):
                forget()
            drawn = Sampling(max_tokens, block.condition.temperature, block.seed, ignore_eos=ignore_eos)
            for method in orders[turn]:
                time.sleep(settle_s)
                condition = block.condition
                asked = ask_all(urls[method], MODEL, block.prompts, drawn, condition.concurrency, rate=condition.rate)
                answers, wall = asyncio.run(asked)
                cells.append(Cell(method, block.condition, turn, tuple(answers), wall))
                keep(cells[-1])
                advance(1, note=f"{method} {block.condition.kind}")
    return cells


@dataclass(frozen=True)
class Asking:
    """What several methods are asked.

    Attributes:
        one_at_a_time: whether each method is served by itself; None: on GPUs.
        ignore_eos: see ``Sampling``.
    """

    blocks: tuple[Block, ...]
    max_tokens: int
    one_at_a_time: bool | None = None
    ignore_eos: bool = False


def serves_alone(asked: bool | None) -> bool:
    """Whether one method is served after the other, and not all side by side: as asked, else on GPUs."""
    return not cpu_build_installed() if asked is None else asked


def ask_methods(
    target: Path,
    methods: Sequence[Method],
    asking: Asking,
    logs: Path,
    options: EngineOptions,
    saved: SavedCells | None = None,
) -> list[Cell]:
    """Serves the methods and runs every block with each of them: side by side, or one method after the other.

    Args:
        saved: where cells are kept as they come, and taken from where an earlier run was cut off; ``clear`` it when all is done.
    """
    cells: list[Cell] = []
    for together in [[method] for method in methods] if serves_alone(asking.one_at_a_time) else [methods]:
        names = [method.name for method in together]
        begin = saved.keep(names, asking.blocks) if saved else 0
        if saved and begin:
            log(
                f"going on where an earlier run was cut off: turn {begin + 1} of {len(asking.blocks)} of {', '.join(names)}"
            )
            cells += [cell for cell in saved.cells if cell.method in names]
        if begin == len(asking.blocks):
            continue
        with serving(target, together, logs, options) as served:
            keep = saved.add if saved else _forget_cell
            cells += run_cells(
                served.urls, asking.blocks, asking.max_tokens, settle_s(), served.forget, begin, keep, asking.ignore_eos
            )
    return cells


def _forget_cell(_: Cell) -> None:
    """Keeps nothing."""


def orders_of(names: Sequence[str], blocks: Sequence[Block]) -> list[list[str]]:
    """In which order the methods take their turns of each block.

    Of one condition's blocks every second one has the order of the one before reversed, so that what drifts evenly favours none;
    each such pair begins with another method, and so does each condition.
    """
    before: dict[Condition, int] = {}
    found = []
    for block in blocks:
        earlier = before.setdefault(block.condition, 0)
        start = (list(before).index(block.condition) + earlier // 2) % len(names)
        order = [*names[start:], *names[:start]]
        found.append(order[::-1] if earlier % 2 else order)
        before[block.condition] += 1
    return found
