"""An evaluation as a table on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from evaluation.evaluating import Evaluation
from evaluation.scores import Ratio


def of_ratio(ratio: Ratio | None) -> str:
    """A share of the target's in per cent with its interval."""
    if ratio is None:
        return "–"
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return "undefined: the target is no better than chance"
    return f"{100 * ratio.value:.1f} % [{100 * ratio.low:.1f}, {100 * ratio.high:.1f}]"


def render(evaluation: Evaluation, console: Console) -> None:
    """Prints every task's score with its interval, and what is kept of the target's."""
    kept = evaluation.retention
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("task", "metric", "score", "95 %", "chance", "items", *(["of the target's"] if kept else [])):
        table.add_column(head, justify="left" if head in ("task", "metric") else "right")
    for score in evaluation.tasks:
        shares = kept.bits_per_byte if kept and score.is_perplexity else kept.tasks.get(score.task) if kept else None
        table.add_row(
            score.task, score.metric, f"{score.score:.3f}", f"{score.low:.3f} to {score.high:.3f}",
            "–" if score.is_perplexity else f"{score.chance:.3f}", str(len(score.items)),
            *([of_ratio(shares)] if kept else []),
        )  # fmt: skip
    console.print(table)
    if kept:
        console.print(f"retention: {of_ratio(kept.plain)}, above chance {of_ratio(kept.above_chance)}")
