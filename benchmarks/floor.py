"""A pair where many share the engine, beside plain decoding and two engines more of that: ``python -m benchmarks.floor PAIR``.

Where `choose` lets a pair draft nothing, it does what plain decoding does, and the question is whether it loses anything to it.
Turns of that load take seconds, so a few of them cannot tell a loss from the engines' noise. Here there are many, and a second
plain engine beside them says what the noise is. Writes floor.json; an interrupted run goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np

from benchmarks.floor_render import AGAIN
from drafts.asking import Asking, ask_methods
from drafts.blocks import Cell, blocks_of, conditions_of
from drafts.cells import acceptance, faster, groups
from drafts.encoding import fitting
from drafts.methods import EngineOptions, Method, own_name
from drafts.prompts import prompts_hash, read_prompts, sample
from drafts.saved_cells import SavedCells
from evaluation.scores import Values, percentiles, resampled
from pruning.checkpoint import load_tokenizer
from server.pair import read_pair
from stages import provenance
from stages.folders import write_text
from stages.hashing import checkpoint_hash

FILE = Path(__file__).parent / "floor.json"
TIMES = 2000
"""Draws of the bootstrap."""


def resampled_ratios(own: Sequence[Cell], plain: Sequence[Cell], seed: int = 0) -> Values:
    """Ratios of output tokens per second of resampled turns [TIMES]; whole turns are drawn, a turn's two cells together."""
    columns = [
        [float(cell.num_tokens) for cell in own], [cell.wall_s for cell in own],
        [float(cell.num_tokens) for cell in plain], [cell.wall_s for cell in plain],
    ]  # fmt: skip
    tokens, seconds, base_tokens, base_seconds = resampled(columns, TIMES, seed)
    return (tokens / seconds) / (base_tokens / base_seconds)


def rows_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for each method but plain and each condition."""
    rows = []
    for method, condition, own, plain in groups(cells):
        if method == "plain":
            continue
        low, high = percentiles(resampled_ratios(own, plain))
        rows.append({
            "method": method, "kind": condition.kind, "temperature": condition.temperature,
            "concurrency": condition.concurrency, "turns": len(own), "speedup": faster(own, plain), "low": low, "high": high,
            "num_drafts": acceptance([answer for cell in own for answer in cell.answers])["num_drafts"],
        })  # fmt: skip
    return rows


def means_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """A row for each method but plain and each number of requests: the geometric mean over kinds and temperatures."""
    found: dict[tuple[str, int], list[tuple[float, Values]]] = {}
    for seed, (method, condition, own, plain) in enumerate(groups(cells)):
        if method != "plain":
            entry = faster(own, plain), resampled_ratios(own, plain, seed)
            found.setdefault((method, condition.concurrency), []).append(entry)
    rows = []
    for (method, concurrency), entries in found.items():
        ratios, resamples = zip(*entries, strict=True)
        low, high = percentiles(np.exp(np.log(resamples).mean(0)))
        rows.append({
            "method": method, "concurrency": concurrency, "speedup": geometric_mean(ratios), "low": low, "high": high,
        })  # fmt: skip
    return rows


def main() -> None:
    """Serves the engines side by side and asks them in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", type=Path, help="folder of the pair, e.g. build/reference-compiled/pair")
    parser.add_argument("prompts", type=Path, help="held-out prompts (JSONL)")
    parser.add_argument("--concurrencies", type=int, nargs="+", default=[8, 16], help="requests at a time")
    parser.add_argument(
        "--turns",
        type=int,
        default=24,
        help="of every kind, temperature and number of requests: a multiple of six, for each of three engines to begin as often",
    )
    parser.add_argument("--prompts-per-kind", type=int, default=24, help="asked in each turn")
    parser.add_argument("--max-tokens", type=int, default=48, help="of an answer")
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args()
    pair = read_pair(asked.pair)
    serving = pair.serving
    everything = fitting(
        read_prompts(asked.prompts), load_tokenizer(pair.target), serving.max_model_len, asked.max_tokens
    )
    prompts = sample(everything, asked.prompts_per_kind, seed=0)
    blocks = [
        block
        for concurrency in asked.concurrencies
        for condition in [conditions_of(prompts, [concurrency], (0.0, 1.0))]
        for block in blocks_of(prompts, condition, asked.turns, asked.prompts_per_kind, 0)
        if block.repeat < asked.turns
    ]
    methods = [
        Method("plain"), Method(own_name(pair.speculative_config), pair.speculative_config), Method(AGAIN),
    ]  # fmt: skip
    how = EngineOptions(serving.max_model_len, max(asked.concurrencies), serving.enforce_eager, serving.engine_args)
    asking = Asking(tuple(blocks), asked.max_tokens, one_at_a_time=False)
    made_from = [
        serving.model_dump(mode="json"), checkpoint_hash(pair.target), prompts_hash(prompts), str(blocks), asked.max_tokens,
        provenance.versions(), provenance.hardware(),
    ]  # fmt: skip
    saved = SavedCells(asked.out.with_name(f".{asked.out.stem}.cells.jsonl"), made_from)
    cells = ask_methods(pair.target, methods, asking, asked.out.parent / "engine-logs", how, saved)
    record = {
        "means": means_of(cells), "rows": rows_of(cells),
        "speculative_config": serving.speculative_config, "enforce_eager": serving.enforce_eager,
        "prompts_per_kind": asked.prompts_per_kind, "max_tokens": asked.max_tokens,
        "versions": provenance.versions(), "hardware": provenance.hardware(),
        "date": datetime.date.today().isoformat(), "git_revision": provenance.git_revision(),
    }  # fmt: skip
    write_text(asked.out, json.dumps(record, indent=1) + "\n")
    saved.clear()
    print(asked.out)


if __name__ == "__main__":
    main()
