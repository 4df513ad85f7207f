"""Compares plain decoding, n-gram look-up and the draft, through the gateway, interleaved in one run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drafts.cells import conditions_of, differing, rows_of, run_cells
from drafts.client import Sampling
from drafts.encoding import fitting
from drafts.methods import NGRAM, EngineOptions, Method, serving, settle_s
from drafts.pictures import draw_comparison
from drafts.prompts import Prompt, prompts_hash, read_prompts, refuse_overlap, sample
from drafts.ties import judge_differences
from pruning.checkpoint import load_tokenizer
from server.pair import Pair, read_pair
from stages import provenance
from stages.errors import InputError
from stages.folders import write_text
from stages.hashing import checkpoint_hash
from stages.settings import Settings

HEADS = (
    "method", "kind", "conc.", "T", "tokens/s", "ms/token", "ttft ms", "speed-up", "w/o loops",
    "accept.", "length", "identical", "looping",
)  # fmt: skip
"""Heads of the whole table; ``table_cells`` gives the cells in this order."""


class CompareSettings(Settings):
    """How methods are compared.

    Attributes:
        prompts_per_kind: a seeded sample of the prompts; all of them when not given.
        block_size: prompts after which the next method takes its turn.
        enforce_eager: whether engines run without compiling; the pair's own setting when not given.
    """

    prompts_per_kind: int | None = Field(default=None, ge=1)
    max_tokens: int = Field(default=96, ge=2)
    concurrencies: tuple[int, ...] = Field(default=(1, 4), min_length=1)
    temperatures: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    repeats: int = Field(default=3, ge=1)
    block_size: int = Field(default=20, ge=1)
    seed: int = 0
    enforce_eager: bool | None = None


def methods_of(pair: Pair) -> list[Method]:
    """Plain, n-gram, and what the pair is served with."""
    methods = [Method("plain"), Method("ngram", NGRAM)]
    if pair.speculative_config:
        methods.append(Method("draft", pair.speculative_config))
    return methods


METHODS = ("plain", "ngram", "draft")
"""Order of the methods in tables."""

SHOWN = {
    "tokens/s": "tokens/s", "speed-up": "speed-up", "w/o loops": "no loops", "accept.": "accept.",
    "length": "length", "identical": "same", "looping": "loops",
}  # fmt: skip
"""Columns of the printed table after the methods, and their heads there: what fits a terminal of 80 columns."""


def in_order(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by kind, concurrency, temperature and method."""
    return sorted(
        rows, key=lambda row: (row["kind"], row["concurrency"], row["temperature"], METHODS.index(row["method"]))
    )


def render(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the rows, one section for each kind, concurrency and temperature; the rest of the figures is in the file."""
    table = Table(box=None, padding=(0, 1, 0, 0), title="speed-up over plain decoding (same run; range over turns)")
    table.add_column("", no_wrap=True)
    for head in SHOWN.values():
        table.add_column(head, justify="right", no_wrap=True)
    for (kind, concurrency, temperature), group in groupby(
        in_order(rows), key=lambda r: (r["kind"], r["concurrency"], r["temperature"])
    ):
        table.add_row(f"[bold]{escape(kind)} ×{concurrency}, T={temperature:g}[/bold]")
        for row in group:
            cells = dict(zip(HEADS, table_cells(row), strict=True))
            table.add_row(f"  {row['method']}", *(cells[head] for head in SHOWN))
    console.print(table)


def _show(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def table_cells(row: dict[str, Any]) -> list[str]:
    """One row as printable cells, in the order of the table's heads."""
    spread = f"{row['speedup']:.2f} ({row['speedup_low']:.2f}–{row['speedup_high']:.2f})"
    return [
        row["method"], row["kind"], str(row["concurrency"]), f"{row['temperature']:g}",
        f"{row['output_tokens_per_s']:.0f}", _show(row["tpot_s"] and 1000 * row["tpot_s"], ".1f"),
        f"{1000 * row['ttft_s']:.0f}", spread, _show(row["speedup_without_loops"], ".2f"),
        _show(row["acceptance_rate"], ".2f"), _show(row["mean_acceptance_length"], ".2f"),
        _show(row["identical_outputs"], ".1%"), f"{row['looping_outputs']:.0%}",
    ]  # fmt: skip


def _refuse_seen(prompts: list[Prompt], training_file: Path | None) -> None:
    if training_file is not None:
        refuse_overlap(read_prompts(training_file), prompts)


def compare(
    pair_path: Path, prompts_file: Path, out: Path, settings: CompareSettings, training_prompts: Path | None = None
) -> list[dict[str, Any]]:
    """Runs the comparison and writes ``out`` (JSON) and a picture beside it.

    Args:
        training_prompts: prompts the draft was trained on; an overlap with ``prompts_file`` is refused.
    """
    pair = read_pair(pair_path)
    target = pair.target
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a JSON file as --out")
    everything = read_prompts(prompts_file)
    _refuse_seen(everything, training_prompts)
    tokenizer = load_tokenizer(target)
    fit = fitting(everything, tokenizer, pair.serving.max_model_len, settings.max_tokens)
    prompts = sample(fit, settings.prompts_per_kind, settings.seed)
    inputs = {"target": checkpoint_hash(target), "prompts": prompts_hash(prompts)}
    if pair.serving.draft:
        inputs["draft"] = pair.serving.draft.sha256
    run = provenance.Run("compare", settings.model_dump(mode="json"), inputs, settings.seed)
    methods = methods_of(pair)
    logs = out.parent / "engine-logs"
    eager = pair.serving.enforce_eager if settings.enforce_eager is None else settings.enforce_eager
    how = EngineOptions(pair.serving.max_model_len, max(settings.concurrencies), eager)
    with serving(target, methods, logs, how) as urls:
        conditions = conditions_of(prompts, settings.concurrencies, settings.temperatures)
        cells = run_cells(
            urls,
            prompts,
            conditions,
            Sampling(settings.max_tokens, seed=settings.seed),
            settings.repeats,
            settings.block_size,
            settle_s(),
        )
    rows = rows_of(cells, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    record = {
        "rows": rows, "settings": run.identity["settings"], "inputs": run.identity["inputs"],
        "speculative_config": pair.serving.speculative_config, "enforce_eager": eager, "versions": provenance.versions(),
        "hardware": provenance.hardware(), "date": datetime.date.today().isoformat(), "git_revision": provenance.git_revision(),
    }  # fmt: skip
    write_text(out, json.dumps(record, indent=1) + "\n")  # before the target is loaded to judge differences
    record["differing_outputs"] = judge_differences(target, differing(cells), {p.id: p for p in prompts}, tokenizer)
    write_text(out, json.dumps(record, indent=1) + "\n")
    draw_comparison(in_order(rows), out.with_suffix(".png"))
    return rows
