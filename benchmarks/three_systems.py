"""The three systems side by side: ``python -m benchmarks.three_systems [--quick]`` writes three_systems.json.

Every cell is a folder; one that is there and was made with the same settings is skipped, so an interrupted run goes on where it
stopped, and so does one on another machine: the published file says which cells its rows are of. A cell that fails is named in
``failed`` and left out of the rows; the others go on.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer

from benchmarks.three_cost import peak_mib, scoring_over_forward
from benchmarks.three_grid import FULL, QUICK, Cell, Grid, cells_of, row
from benchmarks.three_models import ROOT, TARGET, Workshop, alone, seconds_of
from drafts.cells import Asking, ask_methods, blocks_of, conditions_of, rows_of
from drafts.distilling import DistillSettings, distill
from drafts.judging import JudgeSettings, judge
from drafts.methods import EngineOptions, Method
from drafts.prompts import read_prompts, sample
from evaluation.evaluating import Evaluation, evaluate
from evaluation.scores import Ratio
from evaluation.settings import LOCAL_TASKS, TASK_FOLDER, EvaluateSettings
from pruning.checkpoint import load_tokenizer
from pruning.settings import WidthSettings
from stages import provenance
from stages.errors import CheckFailed, InputError, UnderstudyError
from stages.folders import publish, write_text
from stages.hashing import checkpoint_hash, file_hash, value_hash
from stages.progress import log

VALIDATION = ROOT / "reference" / "prompts" / "validation.jsonl"
PUBLISHED = Path(__file__).parent / "three_systems.json"
ROWS = "rows.json"

OF_THIS_MACHINE = ("speed", "cost")
"""Tables whose figures are another machine's on another machine."""

Rows = list[dict[str, Any]]


def of_ratio(cell: Cell, metric: str, ratio: Ratio | None) -> Rows:
    """A row of a share of the target's, none where it is undefined."""
    return [] if ratio is None or ratio.value is None else [row(cell, metric, ratio.value, ratio.low, ratio.high)]


def rows_of_evaluation(cell: Cell, found: Evaluation) -> Rows:
    """Scores of every task, and what is kept of the target's."""
    scores = [
        row(cell, f"{s.task.removeprefix('understudy_')}:{s.metric}", s.score, s.low, s.high) for s in found.tasks
    ]
    kept = found.retention
    if kept is None:
        return scores
    shares = (
        ("retention", kept.plain),
        ("retention_above_chance", kept.above_chance),
        ("bits_ratio", kept.bits_per_byte),
    )
    return [*(line for name, ratio in shares for line in of_ratio(cell, name, ratio)), *scores]


class Measuring:
    """How each table's cells are measured.

    Args:
        out: the run's folder.
    """

    def __init__(self, grid: Grid, out: Path):
        self.grid, self.out = grid, out
        self.shop = Workshop(grid, out)

    def target_result(self) -> Path:
        """The target's own evaluation, made once for its settings."""
        settings = self.evaluation()
        file = self.out / "target" / f"{value_hash(settings.model_dump(mode='json'))[:12]}.json"
        with alone(file):
            if not file.is_file():
                evaluate(TARGET, file, settings)
        return file

    def evaluation(self) -> EvaluateSettings:
        """The same items for all models and seeds."""
        return EvaluateSettings(limit=self.grid.evaluation_limit, dtype="float32")

    def size(self, folder: Path) -> dict[str, float]:
        """Parameters of a model, and which share of the target's it lacks."""
        own, target = (_parameters(place) for place in (folder, TARGET))
        return {"parameters": own, "parameters_removed": 1 - own / target}

    def quality(self, cell: Cell, folder: Path) -> Rows:
        """Tables depth, width, structured: one model, evaluated against the target."""
        model = self.shop.model(cell)
        found = evaluate(model, folder / "evaluation.json", self.evaluation(), against=self.target_result())
        return [*rows_of_evaluation(cell, found), *(row(cell, name, v) for name, v in self.size(model).items())]

    def acceptance(self, cell: Cell, folder: Path) -> Rows:
        """How far the target would follow the model as its draft, on the target's answers to validation prompts."""
        answers = self.out / "stages" / "validation-answers"
        grid = self.grid
        settings = DistillSettings(
            backend="transformers", max_prompts=grid.judged_prompts, max_tokens=grid.answer_tokens
        )
        with alone(answers):
            distill(TARGET, VALIDATION, answers, settings)
        judging = JudgeSettings(num_speculative_tokens=grid.judged_tokens)
        found = judge(TARGET, self.shop.model(cell), answers, folder / "judged.json", judging)
        positions = sum(f.positions for f in found)
        rows = []
        for metric, values in (
            ("overlap", [f.overlap for f in found]), ("agreement", [f.agreement for f in found]),
            ("acceptance_length", [f.acceptance_lengths[-1] for f in found]),
        ):  # fmt: skip
            mean = sum(v * f.positions for v, f in zip(values, found, strict=True)) / positions
            rows.append(row(cell, metric, mean, min(values), max(values)))
        return rows

    def speed(self, cell: Cell, folder: Path) -> Rows:
        """Served beside the target, plain decoding, in all exports that the grid names."""
        exports = [e for method, sparsity, e in self.grid.served if (method, sparsity) == (cell.method, cell.sparsity)]
        models = {export: self.shop.pruned(cell, export) for export in exports}  # type: ignore[arg-type]
        rows: Rows = []
        for start in range(0, len(exports), self.grid.served_at_once):
            rows += self._served_rows(
                cell, {e: models[e] for e in exports[start : start + self.grid.served_at_once]}, folder
            )
        for export, model in models.items():
            size = self.size(model)
            rows += [row(cell, f"{name}:{export}", value) for name, value in size.items()]
            rows.append(
                row(cell, f"weights_mib:{export}", sum(f.stat().st_size for f in model.glob("*.safetensors")) / 2**20)
            )
        return rows

    def _served_rows(self, cell: Cell, models: dict[str, Path], folder: Path) -> Rows:
        grid = self.grid
        prompts = [
            p.model_copy(update={"kind": "all"})
            for p in sample(read_prompts(VALIDATION), max(1, grid.served_prompts // 2), 0)
        ]
        blocks = blocks_of(
            prompts, conditions_of(prompts, [1], [0.0]), grid.served_repeats, max(1, len(prompts) // 4), 0
        )
        methods = [Method("plain"), *(Method(export, model=model) for export, model in models.items())]
        how = EngineOptions(512, 2, grid.enforce_eager)
        cells = ask_methods(TARGET, methods, Asking(tuple(blocks), grid.served_tokens), folder / "engine-logs", how)
        tokenizer = load_tokenizer(TARGET)
        found = rows_of(cells, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        return [
            line
            for f in found
            if f["method"] != "plain"
            for line in (
                row(cell, f"speedup:{f['method']}", f["speedup"], f["speedup_low"], f["speedup_high"]),
                row(cell, f"tokens_per_s:{f['method']}", f["output_tokens_per_s"]),
            )
        ]

    def cost(self, cell: Cell, folder: Path) -> Rows:
        """Wall times of the stages, and what scoring and training cost beside what they are compared with."""
        model, pruned = self.shop.model(cell), self.shop.pruned(cell)
        rows = [row(cell, "prune_s", seconds_of(pruned))]
        if model != pruned:
            rows.append(row(cell, "recover_s", seconds_of(model)))
        if cell.method.startswith("cfsp"):
            text = {"calibration": (self.shop.prompts,), "calibration_tokens": self.grid.calibration_tokens}
            settings = WidthSettings(**text, dtype="float32")
            ratios = scoring_over_forward(TARGET, settings, self.grid.cost_repeats)
            rows.append(row(cell, "scoring_over_forward", statistics.median(ratios), min(ratios), max(ratios)))
        if cell.method == "nuteprune:numerous":
            plain = peak_mib("plain", TARGET)
            rows.append(row(cell, "peak_memory_over_finetuning", peak_mib("nuteprune", TARGET) / plain))
            rows.append(row(cell, "peak_memory_with_two_models", peak_mib("second_model", TARGET) / plain))
        return rows

    def measure(self, cell: Cell, folder: Path) -> Rows:
        """All rows of a cell."""
        ways: dict[str, Callable[[Cell, Path], Rows]] = {
            "acceptance": self.acceptance, "speed": self.speed, "cost": self.cost
        }  # fmt: skip
        return ways.get(cell.table, self.quality)(cell, folder)


def _parameters(folder: Path) -> float:
    """Weights of a checkpoint, by its files: tied ones count once, as they are stored once."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return float(total)


def run_of(cell: Cell, grid: Grid) -> provenance.Run:
    """The identity of a cell, to ask whether its folder is current: itself, the budgets, target, prompts and tasks.

    What other cells the grid has does not belong to it.
    """
    budgets = grid.model_dump(
        mode="json",
        exclude={
            "seeds",
            "removed_layers",
            "width_sparsities",
            "structured_sparsities",
            "recovered",
            "recovered_sparsities",
            "recoveries",
            "scratch",
        },
    )
    served = [item for item in budgets.pop("served") if item[:2] == [cell.method, cell.sparsity]]
    settings = {**budgets, "cell": cell.slug, **({"served": served} if cell.table == "speed" else {})}
    tasks = {name: file_hash(TASK_FOLDER / f"{name}.jsonl") for name in LOCAL_TASKS}
    prompts = {"train": file_hash(ROOT / "reference" / "prompts" / "train.jsonl"), "validation": file_hash(VALIDATION)}
    return provenance.Run("three-systems", settings, {"target": checkpoint_hash(TARGET), **prompts, **tasks}, cell.seed)


def known(cell: Cell, grid: Grid, out: Path) -> Rows | None:
    """A cell's rows where its folder is current."""
    folder = out / "cells" / cell.slug
    if not run_of(cell, grid).is_current(folder):
        return None
    return list(json.loads((folder / ROWS).read_text(encoding="utf-8")))


def published(cell: Cell, grid: Grid, record: dict[str, Any]) -> Rows | None:
    """A cell's rows in an earlier record, where they were made with the same settings, and of the same processor if it counts."""
    made = record.get("cells", {}).get(cell.slug)
    if made is None or made["identity"] != value_hash(run_of(cell, grid).identity):
        return None
    if cell.table in OF_THIS_MACHINE and made["cpu"] != provenance.hardware()["cpu"]:
        return None
    fields = asdict(cell)
    return [found for found in record["rows"] if {name: found[name] for name in fields} == fields]


def measured(cell: Cell, grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows]) -> Rows:
    """Measures a cell and writes its folder."""
    run = run_of(cell, grid)
    with publish(out / "cells" / cell.slug, stage=run.stage) as partial:
        rows = measure(cell, partial)
        write_text(partial / ROWS, json.dumps(rows, indent=1) + "\n")
        run.write(partial)
    return rows


@dataclass
class Found:
    """What is known of a grid.

    Attributes:
        rows: by the cell's slug.
        failed: one-line errors by the cell's slug.
        earlier: the cells' rows and origin that were read from an earlier record.
    """

    rows: dict[str, Rows] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_grid(
    cells: Sequence[Cell],
    grid: Grid,
    out: Path,
    measure: Callable[[Cell, Path], Rows],
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    before: dict[str, Any] | None = None,
    save: Callable[[Found], None] = lambda found: None,
    jobs: int = 1,
) -> Found:
    """Measures what is not known yet.

    Args:
        only: tables whose cells are measured; of the others' those that are known are read.
        seeds: likewise; empty means all.
        before: an earlier record, whose rows are taken where they still hold.
        save: called after each cell that was measured.
        jobs: cells that are measured at a time, but for those of tables ``OF_THIS_MACHINE``, which need it for themselves.
    """
    found = Found()
    for cell in cells:
        rows = known(cell, grid, out)
        if rows is None and (rows := published(cell, grid, before or {})) is not None:
            found.earlier[cell.slug] = (before or {})["cells"][cell.slug]
        if rows is not None:
            found.rows[cell.slug] = rows
    missing = [
        cell
        for cell in cells
        if cell.slug not in found.rows and (not only or cell.table in only) and (not seeds or cell.seed in seeds)
    ]
    started = time.monotonic()
    results = _measured_all(missing, grid, out, measure, jobs)
    for number, (cell, result) in enumerate(results, 1):
        log(f"[{number}/{len(missing)}] {cell.slug} done ({(time.monotonic() - started) / 60:.1f} min so far)")
        if isinstance(result, str):
            found.failed[cell.slug] = result
            log(f"{cell.slug} failed: {result}")
        else:
            found.rows[cell.slug] = result
            save(found)
    return found


LONGEST_FIRST = ("structured", "depth", "width", "acceptance")
"""Tables in the order in which several processes take a seed's cells, so that none is left with a long one at the end."""


def _measured_all(
    cells: Sequence[Cell], grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows], jobs: int
) -> Iterator[tuple[Cell, Rows | str]]:
    """Each cell's rows, or the one line that says why there are none, as they come."""
    apart = [cell for cell in cells if jobs > 1 and cell.table not in OF_THIS_MACHINE]
    if apart:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            order = sorted(apart, key=lambda cell: (cell.seed, LONGEST_FIRST.index(cell.table), -cell.sparsity))
            asked = {pool.submit(_measured_or_why, cell, grid, out, measure): cell for cell in order}
            try:
                for future in as_completed(asked):
                    yield asked[future], future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after an interruption, nothing more is begun
    for cell in cells:
        if cell not in apart:
            log(f"{cell.slug} …")
            yield cell, _measured_or_why(cell, grid, out, measure)


def _measured_or_why(cell: Cell, grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows]) -> Rows | str:
    try:
        return measured(cell, grid, out, measure)
    except UnderstudyError as error:
        return str(error)
    except Exception as error:  # a fault of ours in one cell does not cost the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def record_of(found: Found, cells: Sequence[Cell], grid: Grid) -> dict[str, Any]:
    """The content of three_systems.json: rows in the cells' order, and what each cell was made with and on."""
    today, there = datetime.date.today().isoformat(), [cell for cell in cells if cell.slug in found.rows]
    hardware = provenance.hardware()
    here = {
        "cpu": hardware["cpu"], "gpus": hardware.get("gpus", []), "torch": provenance.versions().get("torch"),
        "date": today, "git_revision": provenance.git_revision(),
    }  # fmt: skip
    origins = {
        cell.slug: found.earlier.get(cell.slug) or {"identity": value_hash(run_of(cell, grid).identity), **here}
        for cell in there
    }
    return {
        "rows": [row for cell in there for row in found.rows[cell.slug]], "failed": found.failed,
        "missing": [cell.slug for cell in cells if cell.slug not in found.rows and cell.slug not in found.failed],
        "cells": origins, "settings": grid.model_dump(mode="json"), "versions": provenance.versions(),
        "hardware": hardware, "date": today, "git_revision": here["git_revision"],
    }  # fmt: skip


def place_of(quick: bool, folder: Path) -> Path:
    """Where the result goes: the published file, but a quick form's not over a full one's."""
    if not quick or not PUBLISHED.is_file():
        return PUBLISHED
    return (
        PUBLISHED if json.loads(PUBLISHED.read_text(encoding="utf-8"))["settings"]["quick"] else folder / PUBLISHED.name
    )


def main(
    quick: bool = typer.Option(False, "--quick", help="one seed and small budgets: ten minutes on two cores"),
    only: list[str] = typer.Option([], help="measure these tables only; repeat for more"),
    jobs: int = typer.Option(
        1,
        min=1,
        help="cells measured at a time, for a machine with many cores or a GPU; timings are taken alone all the same",
    ),
    seeds: list[int] = typer.Option([], "--seed", help="measure the cells of this seed only; repeat for more"),
    out: Path = typer.Option(
        Path("build/three-systems"), help="folder of the cells; '-quick' is added for the quick form"
    ),
) -> None:
    """Measure all tables and write three_systems.json."""
    grid = QUICK if quick else FULL
    folder = out.with_name(f"{out.name}-quick") if quick else out
    cells = cells_of(grid)
    if unknown := set(only) - {cell.table for cell in cells}:
        raise InputError(
            f"--only {min(unknown)}: no such table; one of {', '.join(dict.fromkeys(c.table for c in cells))}"
        )
    if strange := set(seeds) - set(grid.seeds):
        raise InputError(f"--seed {min(strange)}: no such seed; one of {', '.join(map(str, grid.seeds))}")
    file = place_of(quick, folder)
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def save(found: Found) -> None:
        write_text(file, json.dumps(record_of(found, cells, grid), indent=1) + "\n")

    found = run_grid(cells, grid, folder, Measuring(grid, folder).measure, only, seeds, before, save, jobs)
    save(found)
    print(f"{file}: {len(found.rows)} of {len(cells)} cells")
    if found.failed:
        raise CheckFailed(
            f"{len(found.failed)} of {len(cells)} cells failed: {', '.join(found.failed)}; run the same command again"
        )


if __name__ == "__main__":
    try:
        typer.run(main)
    except UnderstudyError as error:
        print(f"three_systems: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
