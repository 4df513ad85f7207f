"""Speed-ups of a method that was timed as a whole: from cells to what ``choose`` reads."""

from __future__ import annotations

from collections.abc import Sequence

from drafts.blocks import Cell
from drafts.cells import faster, groups
from drafts.measurements import Served


def served(cells: Sequence[Cell], method: str, num_speculative_tokens: int) -> tuple[Served, ...]:
    """Its speed-up under every condition, by the formula of ``compare``; empty if none of the cells are its own.

    Args:
        cells: with plain's of the same turns.
        method: name of its engine.
        num_speculative_tokens: the most that it proposes in a step.
    """
    return tuple(_served(own, plain, num_speculative_tokens) for name, _, own, plain in groups(cells) if name == method)


def _served(own: Sequence[Cell], plain: Sequence[Cell], num_speculative_tokens: int) -> Served:
    condition = own[0].condition
    turns = [faster([cell], [base]) for cell, base in zip(own, plain, strict=True)]
    records = [answer.speculation for cell in own for answer in cell.answers if answer.speculation]
    return Served(
        kind=condition.kind, temperature=condition.temperature, concurrency=condition.concurrency,
        num_speculative_tokens=num_speculative_tokens, speedup=faster(own, plain), low=min(turns), high=max(turns),
        num_drafts=sum(r.num_drafts for r in records), num_draft_tokens=sum(r.num_draft_tokens for r in records),
        num_accepted_tokens=sum(r.num_accepted_tokens for r in records),
    )  # fmt: skip
