"""The tables of the three systems: what rows become, and what is said beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.three_grid import FULL, METHODS, NONE, Cell, cells_of, row
from benchmarks.three_render import figures, made_on, quality, same_arms, same_cut, side_by_side, two_sets_of_answers
from benchmarks.three_render import three_systems as section
from benchmarks.three_systems import Found, record_of


def record() -> dict[str, Any]:
    found, cells = Found(failed={"speed-x": "no engine"}), cells_of(FULL)
    for cell in cells[:-1]:
        values = {"retention": 0.9 - cell.sparsity / 2 + cell.seed / 100, "parameters_removed": cell.sparsity}
        found.rows[cell.slug] = [
            *(row(cell, metric, value, value - 0.1, value + 0.1) for metric, value in values.items()),
            *(row(cell, name, 1.0) for name in ("acceptance_length", "overlap", "prune_s", "speedup:ragged")),
        ]
    return json.loads(json.dumps(record_of(found, cells, FULL, Path("nowhere"))))


def test_tables_are_listed_by_the_machine_they_were_made_on() -> None:
    here = {"cpu": "c", "gpus": [], "torch": "2", "date": "2026-01-01"}
    there = {**here, "gpus": ["g"], "date": "2026-01-02"}
    cells = {"width-a": here, "depth-b": there, "depth-c": there, "speed-d": {**here, "date": "2026-01-03"}}
    assert made_on({"cost-e": {**here, "bfloat16": True}}) == "c (multiplies bfloat16) with torch 2 (cost; 2026-01-01)"
    assert made_on(cells) == "c with torch 2 (width, speed; 2026-01-03); g and c with torch 2 (depth; 2026-01-02)"


def test_arms_that_were_the_same_run_are_named() -> None:
    arms = [(method, share) for share in (0.2, 0.5) for method in ("nuteprune:intact", "nuteprune:numerous")]
    values = [0.9, 0.9, 0.7, 0.8]
    rows = [
        row(Cell("structured", method, share, "lora", 0), "retention", value)
        for (method, share), value in zip(arms, values, strict=True)
    ]
    assert "At 20 % both arms" in same_arms(rows)
    assert same_arms(rows[2:]) == ""


def test_several_seeds_become_their_mean_and_are_no_surer_of_the_items() -> None:
    found = figures(record()["rows"], "width")["cfsp:paper", 0.5, NONE]["retention"]
    assert found.value == pytest.approx(0.66)
    assert (found.low, found.high) == (pytest.approx(0.56), pytest.approx(0.76))
    assert "| 66.0 [56.0, 76.0] | 65.0–67.0 |" in quality(record()["rows"], "width")


def test_models_of_one_size_stand_beside_the_best_of_it() -> None:
    lines = same_cut([
        row(Cell("depth", "depth:sft", 0.2, "full", 0), "retention", 0.6),
        row(Cell("depth", "depth:sft", 0.2, "full", 0), "parameters_removed", 0.2),
        row(Cell("width", "cfsp:paper", 0.3, NONE, 0), "retention", 0.8),
        row(Cell("width", "cfsp:paper", 0.3, NONE, 0), "parameters_removed", 0.21),
        row(Cell("width", "cfsp:paper", 0.5, NONE, 0), "retention", 0.9),
        row(Cell("width", "cfsp:paper", 0.5, NONE, 0), "parameters_removed", 0.4),
    ]).splitlines()[2:]  # fmt: skip
    assert "| 75.0 | cfsp:paper (none) |" in lines[0]
    assert all("| 100.0 | itself |" in line for line in lines[1:])


def test_models_are_compared_on_the_seeds_that_both_have() -> None:
    merged, sft = (
        Cell("depth", "depth:merged", 0.2, "full", 0),
        [Cell("depth", "depth:sft", 0.2, "full", s) for s in (0, 1)],
    )
    rows = [row(cell, "parameters_removed", 0.2) for cell in (merged, *sft)]
    rows += [row(cell, "retention", value) for cell, value in ((merged, 0.9), (sft[0], 1.0), (sft[1], 0.5))]
    lines = same_cut(rows).splitlines()[2:]
    assert "| depth:merged | full | 1 | 90.0 | 90.0 | depth:sft (full) |" in lines[0]
    assert "| depth:sft | full | 2 | 75.0 | 100.0 | itself |" in lines[1]


def test_drafts_that_were_judged_on_other_answers_are_named() -> None:
    judged = {"acceptance-a": {"gpus": []}, "acceptance-b": {"gpus": ["g"]}, "acceptance-c": {"gpus": []}}
    said = two_sets_of_answers({**judged, "depth-d": {"gpus": ["g"]}})
    assert "drawn on processors, but for these" in said
    assert said.endswith("on g: b.")
    assert two_sets_of_answers({"acceptance-a": {"gpus": []}, "depth-c": {"gpus": ["g"]}}) == ""


def test_the_section_has_every_table_and_names_what_failed() -> None:
    text = section(record())
    assert text.count("\n### ") == 8
    assert "speed-x: no engine" in text
    assert f"1 of {len(cells_of(FULL))} cells have not been measured yet: 1 of table cost, seed 0." in text
    for method in METHODS:
        assert f"| {method} |" in text


def test_differences_are_of_the_seeds_that_both_sides_have() -> None:
    def kept(method: str, recovery: str, seed: int, value: float) -> dict[str, Any]:
        return row(Cell("depth", method, 0.25, recovery, seed), "retention", value)

    rows = [kept("depth:selfdata", "full", seed, 0.9 + 0.01 * seed) for seed in (0, 1, 2)]
    rows += [kept("depth:sft", "full", seed, 0.88) for seed in (0, 2)]
    rows += [row(Cell("depth", "depth:selfdata", 0.5, "full", 0), "retention", 0.5)]  # with nothing beside it
    lines = side_by_side(rows).splitlines()[2:]
    assert lines == ["| depth:selfdata − depth:sft | 25 % | 2 | +3.0 (+2.0 to +4.0) | – | – |"]
