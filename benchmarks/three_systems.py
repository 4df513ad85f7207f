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
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import typer

from benchmarks.three_grid import FULL, QUICK, Cell, Grid, Rows, cells_of
from benchmarks.three_measuring import VALIDATION, Measuring, made_with
from benchmarks.three_models import TARGET, TRAIN
from benchmarks.three_render import three_systems as section
from evaluation.settings import LOCAL_TASKS, TASK_FOLDER
from stages import provenance
from stages.errors import CheckFailed, InputError, UnderstudyError
from stages.folders import publish, write_text
from stages.hashing import checkpoint_hash, file_hash, value_hash
from stages.progress import log

PUBLISHED = Path(__file__).parent / "three_systems.json"
ROWS = "rows.json"

OF_THIS_MACHINE = ("speed", "cost")
"""Tables whose figures are another machine's on another machine."""


def run_of(cell: Cell, grid: Grid) -> provenance.Run:
    """The identity of a cell, to ask whether its folder is current: all that its figures come from, settings and files.

    Other cells of the grid do not belong to it.
    """
    tasks = {file.name: file_hash(file) for name in LOCAL_TASKS for file in sorted(TASK_FOLDER.glob(f"{name}.*"))}
    prompts = {"train": file_hash(TRAIN), "validation": file_hash(VALIDATION)}
    inputs = {"target": checkpoint_hash(TARGET), **prompts, **tasks}
    return provenance.Run("three-systems", made_with(cell, grid), inputs, cell.seed)


def known(cell: Cell, grid: Grid, out: Path) -> Rows | None:
    """A cell's rows where its folder is current."""
    folder = out / "cells" / cell.slug
    if not run_of(cell, grid).is_current(folder):
        return None
    return list(json.loads((folder / ROWS).read_text(encoding="utf-8")))


def published(cell: Cell, grid: Grid, record: dict[str, Any]) -> Rows | None:
    """A cell's rows in an earlier record, where they were made with the same settings."""
    made = record.get("cells", {}).get(cell.slug)
    if made is None or made["identity"] != value_hash(run_of(cell, grid).identity):
        return None
    fields = asdict(cell)
    return [found for found in record["rows"] if {name: found[name] for name in fields} == fields]


def would_be_here(cell: Cell, made: dict[str, Any]) -> bool:
    """Whether what was ``made`` elsewhere stands beside what is measured here: times of the same processor, drafts judged on
    answers that the same kind of device has drawn. Older records do not say whether their processor multiplies bfloat16."""
    here = provenance.hardware()
    if cell.table in OF_THIS_MACHINE:
        return bool(made["cpu"] == here["cpu"] and made.get("bfloat16") in (None, here["bfloat16"]))
    return cell.table != "acceptance" or made["gpus"] == here.get("gpus", [])


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
    fresh: bool = False,
) -> Found:
    """Measures what is not known yet.

    Args:
        only: tables whose cells are measured; of the others' those that are known are read, whatever machine they are of.
        seeds: likewise; empty means all.
        before: an earlier record, whose rows are taken where they still hold.
        save: called after each cell that was measured.
        fresh: whether all that is asked for and not measured in ``out`` is, whatever the earlier record has of it.
        jobs: cells that are measured at a time, but for those of tables ``OF_THIS_MACHINE``, which need it for themselves.
    """
    found, asked = Found(), [c for c in cells if (not only or c.table in only) and (not seeds or c.seed in seeds)]
    for cell in cells:
        rows = known(cell, grid, out)
        if rows is None and (rows := published(cell, grid, before or {})) is not None:
            found.earlier[cell.slug] = (before or {})["cells"][cell.slug]
        if rows is not None:
            found.rows[cell.slug] = rows
    elsewhere = {c.slug for c in asked if (made := found.earlier.get(c.slug)) and (fresh or not would_be_here(c, made))}
    if taken := sum(cell.slug in found.earlier and cell.slug not in elsewhere for cell in asked):
        log(f"{taken} of {len(asked)} cells are taken from the record of an earlier run; --fresh measures them here")
    missing = [cell for cell in asked if cell.slug not in found.rows or cell.slug in elsewhere]  # these stay until then
    started = time.monotonic()
    results = _measured_all(missing, grid, out, measure, jobs)
    for number, (cell, result) in enumerate(results, 1):
        log(f"[{number}/{len(missing)}] {cell.slug} done ({(time.monotonic() - started) / 60:.1f} min so far)")
        if isinstance(result, str):
            found.failed[cell.slug] = result
            log(f"{cell.slug} failed: {result}")
        else:
            found.rows[cell.slug] = result
            found.earlier.pop(cell.slug, None)
            save(found)
    return found


LONGEST_FIRST = ("structured", "depth", "width", "exports", "acceptance")
"""Tables in the order in which several processes take a seed's cells, so that none is left with a long one at the end."""


THREADS = "OMP_NUM_THREADS"


def _measured_all(
    cells: Sequence[Cell], grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows], jobs: int
) -> Iterator[tuple[Cell, Rows | str]]:
    """Each cell's rows, or the one line that says why there are none, as they come."""
    apart = [cell for cell in cells if jobs > 1 and cell.table not in OF_THIS_MACHINE]
    if apart:
        given = os.environ.get(THREADS)
        os.environ[THREADS] = given or str(max(1, len(os.sched_getaffinity(0)) // jobs))
        try:
            yield from _measured_side_by_side(apart, grid, out, measure, jobs)
        finally:
            if given is None:  # what is timed alone takes all cores
                del os.environ[THREADS]
    for cell in cells:
        if cell not in apart:
            log(f"{cell.slug} …")
            yield cell, _measured_or_why(cell, grid, out, measure)


def _measured_side_by_side(
    cells: Sequence[Cell], grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows], jobs: int
) -> Iterator[tuple[Cell, Rows | str]]:
    """Cells in several processes; where one of these is killed, the rest one by one."""
    left = sorted(cells, key=lambda cell: (cell.seed, LONGEST_FIRST.index(cell.table), -cell.sparsity))
    while left:
        for cell, found in _measured_apart(list(left), grid, out, measure, jobs):
            left.remove(cell)
            yield cell, found
        if left and jobs == 1:
            yield left.pop(0), KILLED
        jobs = 1  # whose process was killed is not told: from here on one by one


KILLED = "its process was killed, perhaps for want of memory"
INTERRUPTED = 130
"""Exit code of a process that was interrupted."""


def _measured_apart(
    cells: Sequence[Cell], grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows], jobs: int
) -> Iterator[tuple[Cell, Rows | str]]:
    """Measures cells in processes of their own; ends early where one of these is killed."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        asked = {pool.submit(_measured_in_worker, cell, grid, out, measure): cell for cell in cells}
        try:
            for future in as_completed(asked):
                yield asked[future], future.result()
        except BrokenExecutor:
            log("a process was killed; the other cells are measured one by one")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an interruption, nothing more is begun


def _measured_in_worker(cell: Cell, grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows]) -> Rows | str:
    """In a process of its own, which an interruption ends: a pool's would go on with the next cell, with its parent gone too."""
    try:
        return _measured_or_why(cell, grid, out, measure)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


def _measured_or_why(cell: Cell, grid: Grid, out: Path, measure: Callable[[Cell, Path], Rows]) -> Rows | str:
    try:
        return measured(cell, grid, out, measure)
    except UnderstudyError as error:
        return str(error)
    except Exception as error:  # a fault of ours in one cell does not cost the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"


def origin_of(folder: Path) -> dict[str, Any]:
    """What a cell's folder says of where, when and with what it was measured."""
    made = provenance.read(folder)
    if made is None:
        return {}
    hardware = made["hardware"]
    told = {"bfloat16": hardware["bfloat16"]} if "bfloat16" in hardware else {}  # older ones do not tell
    return {
        "cpu": hardware["cpu"], **told, "gpus": hardware.get("gpus", []),
        "torch": made["versions"].get("torch"), "date": made["date"][:10], "git_revision": made["git_revision"],
    }  # fmt: skip


def record_of(found: Found, cells: Sequence[Cell], grid: Grid, out: Path) -> dict[str, Any]:
    """The content of three_systems.json: rows in the cells' order, and what each cell was made with and on.

    Args:
        out: the run's folder.
    """
    today, there = datetime.date.today().isoformat(), [cell for cell in cells if cell.slug in found.rows]
    hardware = provenance.hardware()
    here = {
        "cpu": hardware["cpu"], "bfloat16": hardware["bfloat16"], "gpus": hardware.get("gpus", []),
        "torch": provenance.versions().get("torch"), "date": today, "git_revision": provenance.git_revision(),
    }  # fmt: skip
    origins = {
        cell.slug: found.earlier.get(cell.slug)
        or {"identity": value_hash(run_of(cell, grid).identity), **(origin_of(out / "cells" / cell.slug) or here)}
        for cell in there
    }
    return {
        "rows": [row for cell in there for row in found.rows[cell.slug]], "failed": found.failed,
        "missing": [cell.slug for cell in cells if cell.slug not in found.rows and cell.slug not in found.failed],
        "cells": origins, "settings": grid.model_dump(mode="json"), "versions": provenance.versions(),
        "hardware": hardware, "date": today, "git_revision": here["git_revision"],
    }  # fmt: skip


def says_more(record: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Whether a record says anything that the one before does not: one that measured nothing has no date or machine of its own."""
    return before is None or any(
        record[key] != before.get(key) for key in ("rows", "failed", "missing", "cells", "settings")
    )


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
    fresh: bool = typer.Option(
        False,
        "--fresh",
        help="measure what this folder has not, whatever the published file has: hours on two cores; goes on where it stopped",
    ),
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
        record = record_of(found, cells, grid, folder)
        if says_more(record, before):
            write_text(file, json.dumps(record, indent=1) + "\n")

    found = run_grid(cells, grid, folder, Measuring(grid, folder).measure, only, seeds, before, save, jobs, fresh)
    save(found)
    print(f"{file}: {len(found.rows)} of {len(cells)} cells")
    if file != PUBLISHED:  # which RESULTS.md shows
        tables = file.with_name("RESULTS.md")
        write_text(tables, section(json.loads(file.read_text(encoding="utf-8")), str(file)) + "\n")
        print(tables)
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
