"""The rows of a comparison as people read them: order, cells, the printed table, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HEADS = (
    "method", "kind", "load", "under way", "T", "tokens/s", "ms/token", "ttft ms", "speed-up", "predicted", "w/o loops",
    "accept.", "length", "identical", "looping",
)  # fmt: skip
"""Heads of the whole table; ``table_cells`` gives the cells in this order."""


METHODS = ("plain", "ngram", "suffix", "sibling", "draft", "draft_parallel", "draft_greedy", "chosen")
"""Order of the methods in tables; others come after them."""

SHOWN = {
    "tokens/s": "tokens/s", "speed-up": "speed-up", "w/o loops": "no loops", "accept.": "accept.",
    "length": "length", "identical": "same", "looping": "loops",
}  # fmt: skip
"""Columns of the printed table after the methods, and their heads there: what fits a terminal of 80 columns."""


def _place(method: str) -> int:
    return METHODS.index(method) if method in METHODS else len(METHODS)


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by kind, concurrency, temperature and method."""
    return sorted(rows, key=lambda row: (*_condition(row), _place(row["method"])))


def _condition(row: dict[str, Any]) -> tuple[Any, ...]:
    """What the methods are compared under: closed loops before open ones."""
    return row["kind"], row.get("rate") or 0.0, row["concurrency"], row["temperature"]


def load(row: dict[str, Any]) -> str:
    """Requests at a time of a closed loop, arrivals per second of an open one."""
    return f"{row['rate']:g}/s" if row.get("rate") else str(row["concurrency"])


def render(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the rows, one section for each kind, concurrency and temperature; the rest of the figures is in the file."""
    table = Table(box=None, padding=(0, 1, 0, 0), title="speed-up over plain decoding (same run; range over turns)")
    table.add_column("", no_wrap=True)
    for head in SHOWN.values():
        table.add_column(head, justify="right", no_wrap=True)
    for _, group in groupby(in_order(rows), key=_condition):
        same = list(group)
        sign = "" if same[0].get("rate") else "×"
        table.add_row(f"[bold]{escape(same[0]['kind'])} {sign}{load(same[0])}, T={same[0]['temperature']:g}[/bold]")
        for row in same:
            cells = dict(zip(HEADS, table_cells(row), strict=True))
            table.add_row(f"  {row['method']}", *(cells[head] for head in SHOWN))
    console.print(table)


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _gain(row: dict[str, Any]) -> str:
    """The speed-up, with its range where there were several turns.

    Sampled answers differ in length, and older files compare their times in open loops as they are: no figure there.
    """
    if row.get("rate") and row["temperature"] > 0 and "e2e_s_per_token" not in row:
        return "–"
    spread = f" ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})" if row.get("turns") != 1 else ""
    return f"{row['speedup']:.2f}{spread}"


def table_cells(row: dict[str, Any]) -> list[str]:
    """One row as printable cells, in the order of the table's heads."""
    gain, calm = _gain(row), row["speedup_without_loops"]
    return [
        row["method"], row["kind"], load(row), _show(row.get("under_way"), ".1f"), f"{row['temperature']:g}",
        f"{row['output_tokens_per_s']:.0f}", _show(row["tpot_s"] and 1000 * row["tpot_s"], ".1f"),
        f"{1000 * row['ttft_s']:.0f}", gain, _show(row.get("predicted_speedup"), ".2f"),
        _show(None if gain == "–" else calm, ".2f"), _show(row["acceptance_rate"], ".2f"),
        _show(row["mean_acceptance_length"], ".2f"),
        _show(row["identical_outputs"], ".1%"), f"{row['looping_outputs']:.0%}",
    ]  # fmt: skip


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """All figures of all rows; lists are left out."""
    names = [name for name in rows[0] if not isinstance(rows[0][name], list)]
    file = io.StringIO()
    writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(in_order(rows))
    return file.getvalue()
