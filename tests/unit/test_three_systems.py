"""The three systems side by side: which cells there are, what a row looks like, and that a run goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import three_models
from benchmarks.three_grid import FOREIGN, FULL, METHODS, NONE, QUICK, Cell, cells_of, models_of, row
from benchmarks.three_measuring import made_with
from benchmarks.three_models import Workshop, alone, seconds_of
from benchmarks.three_systems import (
    KILLED,
    known,
    measured,
    record_of,
    run_grid,
    run_of,
    says_more,
    would_be_here,
)
from pruning.nuteprune.settings import NutePruneSettings
from stages import provenance
from stages.errors import EngineError

CELL = Cell("width", "cfsp:paper", 0.5, NONE, 0)
FIELDS = {"table", "method", "sparsity", "recovery", "seed", "metric", "value", "low", "high"}


@pytest.mark.parametrize("grid", [QUICK, FULL])
def test_every_method_has_cells_and_every_cell_a_folder_of_its_own(grid) -> None:
    cells = cells_of(grid)
    assert {cell.method for cell in cells} == set(METHODS)
    assert {cell.table for cell in cells} == {"depth", "width", "structured", "acceptance", "exports", "speed", "cost"}
    assert len({cell.slug for cell in cells}) == len(cells)
    assert all(0 < cell.sparsity < 1 for cell in cells)


def test_all_that_is_judged_served_or_timed_is_a_model_of_the_first_tables() -> None:
    made = {(cell.method, round(cell.sparsity, 4)) for cell in models_of(FULL)}
    for cell in cells_of(FULL):
        assert (cell.method, round(cell.sparsity, 4)) in made, cell


def test_the_full_form_has_the_sizes_and_seeds_of_the_tables() -> None:
    assert len(FULL.seeds) == 3
    shares = {table: {c.sparsity for c in models_of(FULL) if c.table == table} for table in ("width", "structured")}
    assert shares == {"width": {0.2, 0.3, 0.5}, "structured": {0.2, 0.25, 0.5}}


def test_a_row_has_all_fields() -> None:
    assert row(CELL, "retention", 0.9, 0.8, 1.0).keys() == FIELDS


class Counting:
    """Measures nothing, but counts, and fails where it is told to."""

    def __init__(self, failing: str = "", error: Exception | None = None):
        self.asked: list[str] = []
        self.failing, self.error = failing, error or EngineError("it did not start")

    def __call__(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        self.asked.append(cell.slug)
        if cell.slug == self.failing:
            raise self.error
        (folder / "evaluation.json").write_text("{}")
        return [row(cell, "retention", 0.5), row(cell, "parameters_removed", 0.2)]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    counting, cells = Counting(), models_of(QUICK)[:3]
    first = run_grid(cells, QUICK, tmp_path, counting)
    again = run_grid(cells, QUICK, tmp_path, counting)
    assert again.rows == first.rows
    assert first.failed == {}
    assert counting.asked == [cell.slug for cell in cells]


def test_a_failed_cell_is_named_and_tried_again_and_the_others_go_on(tmp_path: Path) -> None:
    cells = models_of(QUICK)[:3]
    found = run_grid(cells, QUICK, tmp_path, Counting(cells[1].slug))
    assert found.failed == {cells[1].slug: "it did not start"}
    assert set(found.rows) == {cells[0].slug, cells[2].slug}
    counting = Counting()
    found = run_grid(cells, QUICK, tmp_path, counting)
    assert counting.asked == [cells[1].slug]
    assert set(found.rows) == {cell.slug for cell in cells}
    assert found.failed == {}


def test_a_run_on_another_machine_goes_on_from_the_published_file(tmp_path: Path) -> None:
    cells = [cell for cell in cells_of(QUICK) if cell.table in ("depth", "cost")]
    saved: list[dict[str, Any]] = []
    run_grid(
        cells,
        QUICK,
        tmp_path / "one",
        Counting(),
        save=lambda found: saved.append(record_of(found, cells, QUICK, tmp_path / "one")),
    )
    assert [len(found["cells"]) for found in saved] == list(range(1, len(cells) + 1))
    before = json.loads(json.dumps(saved[-2]))
    before["cells"] = {slug: {**made, "cpu": "another"} for slug, made in before["cells"].items()}
    left = run_grid(cells, QUICK, tmp_path / "three", Counting(), only=["depth"], before=before)
    assert len(left.rows) == len(cells) - 1, "what is not asked for is not thrown away"
    nothing_new = record_of(left, cells, QUICK, tmp_path / "three")
    assert not says_more({**nothing_new, "date": "2030-01-01"}, before)
    counting = Counting()
    found = run_grid(cells, QUICK, tmp_path / "two", counting, before=before)
    assert counting.asked == [cell.slug for cell in cells if cell.table == "cost"]
    assert says_more(record_of(found, cells, QUICK, tmp_path / "two"), before)
    depth = [cell.slug for cell in cells if cell.table == "depth"]
    assert {slug: found.rows[slug] for slug in depth} == {
        slug: known(c, QUICK, tmp_path / "one") for c in cells if (slug := c.slug) in depth
    }
    assert record_of(found, cells, QUICK, tmp_path / "one")["cells"][depth[0]]["cpu"] == "another"
    assert not {cell.slug for cell in cells if cell.table == "cost"} & found.earlier.keys()
    counting = Counting()
    fresh = run_grid(cells, QUICK, tmp_path / "five", counting, only=["depth"], before=before, fresh=True)
    assert counting.asked == depth
    assert len(fresh.rows) == len(cells) - 1, "the others' figures stay"
    run_grid(cells, QUICK, tmp_path / "five", counting, only=["depth"], before=before, fresh=True)
    assert counting.asked == depth, "what was measured here is not measured again"
    failing = Counting(next(cell.slug for cell in cells if cell.table == "cost"))
    kept = run_grid(cells, QUICK, tmp_path / "four", failing, before=before)
    assert failing.failing in kept.rows, "until it is measured anew, what was measured elsewhere stays"
    assert failing.failing in kept.failed


def test_several_processes_find_what_one_does_and_one_that_breaks_stops_no_other(tmp_path: Path) -> None:
    cells = cells_of(QUICK)[:5]
    alone = run_grid(cells, QUICK, tmp_path / "one", Counting(cells[1].slug))
    found = run_grid(cells, QUICK, tmp_path / "two", Counting(cells[1].slug), jobs=2)
    assert found.rows == alone.rows
    assert found.failed == alone.failed == {cells[1].slug: "it did not start"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_fault_in_one_cell_is_named_and_costs_no_other(tmp_path: Path, jobs: int) -> None:
    cells = cells_of(QUICK)[:3]
    found = run_grid(cells, QUICK, tmp_path, Counting(cells[1].slug, ZeroDivisionError("a fault")), jobs=jobs)
    assert found.failed == {cells[1].slug: "ZeroDivisionError: a fault"}
    assert set(found.rows) == {cells[0].slug, cells[2].slug}


@dataclass
class Killed:
    """Measures nothing, and ends its process where it is told to."""

    slug: str

    def __call__(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        if cell.slug == self.slug:
            os.kill(os.getpid(), signal.SIGKILL)
        return [row(cell, "retention", 0.5)]


def test_a_process_that_is_killed_costs_its_own_cell_only(tmp_path: Path) -> None:
    cells = cells_of(QUICK)[:4]
    found = run_grid(cells, QUICK, tmp_path, Killed(cells[1].slug), jobs=2)
    assert found.failed == {cells[1].slug: KILLED}
    assert set(found.rows) == {cell.slug for cell in cells} - {cells[1].slug}


@dataclass
class Interrupted:
    """Measures nothing, notes what was asked, and is interrupted at each."""

    notes: Path

    def __call__(self, cell: Cell, folder: Path) -> list[dict[str, Any]]:
        (self.notes / f"{os.getpid()}-{cell.slug}").touch()
        raise KeyboardInterrupt


def test_a_process_that_is_interrupted_begins_no_other_cell(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    cells = cells_of(QUICK)[:2]
    found = run_grid(cells, QUICK, tmp_path, Interrupted(tmp_path / "notes"), jobs=2)
    assert found.failed == {cell.slug: KILLED for cell in cells}
    asked = [note.name.partition("-")[0] for note in (tmp_path / "notes").iterdir()]
    assert len(asked) == len(set(asked)) >= len(cells)


def test_a_stage_that_two_want_is_made_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    def make() -> None:
        with alone(tmp_path / "stages" / "data"):
            inside.append(1)
            time.sleep(0.05)
            assert len(inside) == 1
            inside.pop()

    with ThreadPoolExecutor(4) as pool:
        for made in [pool.submit(make) for _ in range(4)]:
            made.result()


def test_published_rows_of_other_budgets_are_measured_anew(tmp_path: Path) -> None:
    cells = models_of(QUICK)[:2]
    before = record_of(run_grid(cells, QUICK, tmp_path / "one", Counting()), cells, QUICK, tmp_path / "one")
    counting = Counting()
    fewer = QUICK.model_copy(update={"depth_calibration_tokens": 1})
    run_grid(cells, fewer, tmp_path / "two", counting, before=before)
    assert counting.asked == [cell.slug for cell in cells]


def test_other_budgets_are_measured_anew_but_other_cells_change_nothing(tmp_path: Path) -> None:
    measured(CELL, QUICK, tmp_path, Counting())
    assert known(CELL, QUICK, tmp_path) is not None
    others = {"seeds": (0, 1), "width_sparsities": (0.2,), "tokens": 1, "nuteprune_steps": 1}
    assert known(CELL, QUICK.model_copy(update=others), tmp_path) is not None
    assert known(CELL, QUICK.model_copy(update={"calibration_tokens": 1}), tmp_path) is None


def test_a_default_of_the_product_is_part_of_what_a_cell_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    masked, scratch = Cell("structured", "nuteprune:intact", 0.25, "lora", 0), Cell("depth", "scratch", 0.25, "full", 0)
    cells = (masked, scratch, CELL)
    before = [run_of(cell, QUICK).identity for cell in cells]

    class Other(NutePruneSettings):
        teacher_gap: int = 3
        checkpoint_every_s: float = 1.0

    monkeypatch.setattr(three_models, "NutePruneSettings", Other)
    assert [run_of(cell, QUICK).identity == was for cell, was in zip(cells, before, strict=True)] == [False, True, True]
    noted = json.dumps(before)
    assert "checkpoint_every_s" not in noted
    assert str(Path.cwd()) not in noted


def test_what_a_cell_was_made_with_names_every_stage_of_its_model() -> None:
    def stages(cell: Cell) -> list[str]:
        return [name for stage in made_with(cell, FULL)["stages"] for name in stage]

    assert stages(Cell("depth", "depth:pruned", 0.25, NONE, 0)) == ["pruned"]
    assert stages(Cell("depth", "depth:merged", 0.25, "full", 0)) == ["pruned", "data", "recovered", "data", "merged"]
    assert stages(Cell("acceptance", "cfsp:paper", 0.5, "uniform", 0)) == ["narrowed", "data", "recovered"]
    assert stages(Cell("speed", "cfsp:paper", 0.5, NONE, 0)) == ["narrowed", "narrowed"], "in both shapes"
    foreign = made_with(Cell("depth", "depth:sft", 0.25, FOREIGN, 0), FULL)["stages"]
    assert "networkx" in foreign[0]["data"][1]


def test_of_tables_that_are_left_out_what_is_known_stays(tmp_path: Path) -> None:
    cells = [cell for cell in cells_of(QUICK) if cell.method == "depth:sft"]
    run_grid(cells[:1], QUICK, tmp_path, Counting())
    counting = Counting()
    found = run_grid(cells, QUICK, tmp_path, counting, only=["acceptance"])
    assert counting.asked == [cell.slug for cell in cells if cell.table == "acceptance"]
    assert {r["table"] for rows in found.rows.values() for r in rows} == {"depth", "acceptance"}


def test_what_is_served_belongs_to_the_cells_that_serve_it() -> None:
    more = QUICK.model_copy(update={"served": (*QUICK.served, ("cfsp:paper", 0.5, "ragged"))})
    served = Cell("speed", "cfsp:paper", 0.5, NONE, 0)
    assert run_of(served, QUICK).identity != run_of(served, more).identity
    assert run_of(CELL, QUICK).identity == run_of(CELL, more).identity


def test_depths_recoveries_learn_answers_alone_and_their_budget_is_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    shop, made = Workshop(QUICK, Path("nowhere")), []
    monkeypatch.setattr(shop, "pruned", lambda cell: Path("pruned"))
    monkeypatch.setattr(
        shop, "answers", lambda mode, seed, kind=None, foreign=False: Path(f"{mode}{' foreign' * foreign}")
    )
    monkeypatch.setattr(shop, "_recovered", lambda pruned, data, settings: made.append((data.name, settings)) or data)
    share, changed = 0.25, QUICK.model_copy(update={"depth_tokens": 7})
    sft, selfdata = (Cell("depth", f"depth:{arm}", share, "full", 0) for arm in ("sft", "selfdata"))
    narrowed = Cell("width", "cfsp:paper", 0.5, "uniform", 0)
    foreign = [replace(cell, recovery=FOREIGN) for cell in (sft, selfdata)]
    for cell in (sft, selfdata, narrowed, *foreign):
        shop.model(cell)
    assert [data for data, _ in made] == ["reference", "direct", "direct", "reference foreign", "direct foreign"]
    budgets = [(s.prompt_weight, s.tokens) for _, s in made]
    assert budgets == [(0.0, 2000), (0.0, 2000), (0.5, 6000), (0.0, 2000), (0.0, 2000)]
    scratch, cut = Cell("depth", "scratch", share, "full", 0), Cell("depth", "depth:pruned", share, NONE, 0)
    for cell, is_same in ((selfdata, False), (scratch, False), (narrowed, True), (cut, True)):
        assert (run_of(cell, QUICK).identity == run_of(cell, changed).identity) is is_same


def test_a_merged_models_parents_have_a_kind_each_and_half_of_the_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shop, trained, merged = Workshop(QUICK, tmp_path), [], []
    monkeypatch.setattr(shop, "pruned", lambda cell: Path("pruned"))
    monkeypatch.setattr(shop, "answers", lambda mode, seed, kind=None, foreign=False: Path(f"{mode}-{kind}"))
    monkeypatch.setattr(
        shop, "_recovered", lambda pruned, data, s: trained.append((pruned.name, data.name, s.tokens, s.seed)) or data
    )
    monkeypatch.setattr(three_models, "merge", lambda *given: merged.append(given[1:4]))
    made = shop.model(Cell("depth", "depth:merged", 0.25, "full", 1))
    half = QUICK.depth_tokens // 2
    assert trained == [("pruned", "direct-code", half, 1), ("pruned", "direct-chat", half, 1)]
    assert merged == [(Path("direct-code"), Path("direct-chat"), made)]


def test_what_another_kind_of_machine_decides_is_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "hardware", lambda: {"cpu": "c", "bfloat16": True, "gpus": []})
    judged = Cell("acceptance", "cfsp:paper", 0.5, NONE, 0)
    assert would_be_here(judged, {"cpu": "another", "gpus": []})
    assert not would_be_here(judged, {"cpu": "c", "gpus": ["g"]})
    assert would_be_here(CELL, {"cpu": "another", "gpus": ["g"]})
    timed = replace(judged, table="cost")
    there = [{"cpu": "c"}, {"cpu": "c", "bfloat16": True}, {"cpu": "c", "bfloat16": False}, {"cpu": "another"}]
    assert [would_be_here(timed, made) for made in there] == [True, True, False, False]


def test_a_cell_says_where_it_was_measured_and_not_where_it_was_read(tmp_path: Path) -> None:
    measured(CELL, QUICK, tmp_path, Counting())
    folder = tmp_path / "cells" / CELL.slug
    there = json.loads((folder / "run.json").read_text())
    there |= {"hardware": {"cpu": "another", "gpus": ["g"]}, "date": "2026-01-02T03:04:05", "git_revision": "abc"}
    (folder / "run.json").write_text(json.dumps(there))
    made = record_of(run_grid([CELL], QUICK, tmp_path, Counting()), [CELL], QUICK, tmp_path)["cells"][CELL.slug]
    assert (made["cpu"], made["gpus"], made["date"], made["git_revision"]) == ("another", ["g"], "2026-01-02", "abc")
    assert "bfloat16" not in made, "what an older run.json does not say is not this machine's"


def test_a_stage_that_was_interrupted_took_what_all_its_parts_took(tmp_path: Path) -> None:
    for record, seconds in (
        ({"wall_s": 9.5}, 9.5), ({"wall_s": 9.5, "position": {"seconds": 200.25}}, 200.25),
        ({"wall_s": 9.5, "figures": {"train_s": 7.0}}, 9.5),
    ):  # fmt: skip
        (tmp_path / "run.json").write_text(json.dumps(record))
        assert seconds_of(tmp_path) == seconds
