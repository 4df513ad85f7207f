"""From measured files to draft.json and RESULTS.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.draft import joined
from benchmarks.render import lever_cells, levers, off
from drafts.training import RecoverSettings

ROOT = Path(__file__).parents[2]


def swept(name: str, settings: dict[str, Any], layers: list[int], length: float) -> dict[str, Any]:
    figures = [
        {"kind": kind, "temperature": t, "positions": 100, "overlap": 0.5, "agreement": 0.4,
         "acceptance_lengths": [1.5, length, length + 1], "greedy_drafting_lengths": [1.2, 1.3, 1.4]}
        for kind in ("chat", "code") for t in (0.0, 1.0)
    ]  # fmt: skip
    return {
        "lever": name, "settings": settings, "draft": "d", "kept_layers": layers, "train_seconds": 60.4, "train_tokens": 2000,
        "figures": figures,
    }  # fmt: skip


def served(method: str) -> dict[str, Any]:
    return {
        "method": method, "kind": "code", "concurrency": 1, "temperature": 0.0, "rate": None, "output_tokens_per_s": 50.0,
        "tpot_s": 0.02, "ttft_s": 0.05, "speedup": 1.5, "speedup_low": 1.4, "speedup_high": 1.6,
        "speedup_without_loops": None, "acceptance_rate": None, "mean_acceptance_length": None, "identical_outputs": None,
        "looping_outputs": 0.0, "predicted_speedup": None, "num_prompts": 2, "repeats": 1, "output_tokens": 42,
    }  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> dict[str, Any]:
    (sibling := tmp_path / "sibling").mkdir()
    (sibling / "run.json").write_text('{"position": {"seconds": 240.3, "tokens": 9500}}')
    (tmp_path / "run.json").write_text('{"position": {"seconds": 240.1, "tokens": 9000}}')
    sweep = [
        swept("recipe", {}, [0, 6], 2.0),
        swept("deeper", {"prune": {"layers": [0, 3, 6]}}, [0, 3, 6], 2.5),
        swept("narrow", {"prune": {"mlp_width": 8}}, [0, 6], 1.7),
        swept("sibling from scratch", {"recover": {"from_scratch": True}}, [0, 6], 1.6),
    ]
    record = dict.fromkeys(("inputs", "date", "git_revision", "enforce_eager")) | {
        "settings": {"max_tokens": 8, "repeats": 1, "seed": 0, "drafts": {"sibling": str(sibling)}},
        "versions": {"vllm": "1", "torch": "2"},
        "hardware": {"cpu": "c", "cores": 2, "memory_gib": 4},
        "rows": [served(method) for method in ("plain", "sibling", "recipe", "draft")],
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 2, "model": str(tmp_path)},
        "choice": {"costs": [{"concurrency": 4, "steps": [9.0, 9.0]}, {"concurrency": 1, "steps": [1.3, 1.4]}]},
    }  # fmt: skip
    swept_on = {"hardware": {"cpu": "another", "cores": 4, "memory_gib": 8}, "date": "2026-01-02T03:04:05+00:00"}
    return {**joined(sweep, record), "sweep": swept_on}


def test_levers_have_the_length_of_the_served_number_of_tokens_and_a_prediction_where_the_shape_is_the_served_one(
    result: dict[str, Any],
) -> None:
    rows = {
        r["lever"]: r for r in result["rows"] if "num_positions" in r and (r["kind"], r["temperature"]) == ("code", 0.0)
    }
    assert {name: row["mean_acceptance_length"] for name, row in rows.items()} == {
        "recipe": 2.0, "deeper": 2.5, "narrow": 1.7, "sibling from scratch": 1.6
    }  # fmt: skip
    assert rows["recipe"]["predicted_speedup"] == pytest.approx((20 * 0.02 + 0.05) / (20 / 2.0 * 1.4 * 0.02 + 0.05))
    served_one = next(r for r in result["rows"] if r["method"] == "draft" and "num_positions" not in r)
    assert served_one["predicted_speedup"] == rows["recipe"]["predicted_speedup"]
    assert rows["deeper"]["predicted_speedup"] is rows["narrow"]["predicted_speedup"] is None
    assert rows["sibling from scratch"]["method"] == "sibling"
    assert [(r["method"], r["lever"], r["train_seconds"]) for r in result["rows"] if "num_positions" not in r] == [
        ("plain", None, None), ("sibling", "from scratch, as long", 240.3), ("draft", "recipe", 60.4),
        ("chosen", "the reference build", 240.1),
    ]  # fmt: skip


def test_the_section_lists_the_best_lever_first_and_what_was_served(result: dict[str, Any]) -> None:
    text = levers(result)
    assert text.index("| deeper |") < text.index("| recipe |") < text.index("| narrow |")
    assert "| sibling | code | 1 | 0 | 50 |" in text
    assert "Trained on another, 4 cores, 8 GiB, 2026-01-02." in text
    rows = [row for row in result["rows"] if row["lever"] == "recipe" and "num_positions" in row]
    assert lever_cells(rows) == [
        "recipe", "0, 6", "60", "2,000", "0.500", "0.400", "2.00", "2.00", "2.00", "2.00", "1.30", "1.30", "1.36", "–"
    ]  # fmt: skip


@pytest.mark.parametrize(("config", "own"), [(None, "plain"), ({"method": "suffix"}, "suffix")])
def test_what_was_chosen_has_rows_as_chosen_also_where_it_is_no_draft(config: dict[str, Any] | None, own: str) -> None:
    keys = ("inputs", "date", "git_revision", "enforce_eager", "versions", "hardware", "choice")
    record = dict.fromkeys(keys) | {"settings": {"drafts": {}}}
    rows = [served(method) for method in ("plain", "suffix", "sibling")]
    made = joined([swept("recipe", {}, [0, 6], 2.0)], {**record, "rows": rows, "speculative_config": config})
    methods = [row["method"] for row in made["rows"] if "num_positions" not in row]
    assert sorted(methods) == ["chosen", "plain", "sibling", "suffix"]
    assert methods[methods.index(own) + 1] == "chosen"


def test_predictions_that_were_off_are_named() -> None:
    right, wrong = served("chosen"), {**served("chosen"), "kind": "chat"}
    text = off([served("plain"), {**right, "predicted_speedup": 1.49}, {**wrong, "predicted_speedup": 1.2}])
    assert text.startswith("1 of 2 predictions are off by more than 10%: chosen, chat")
    assert off([{**right, "predicted_speedup": 1.49}]) == "0 of 1 predictions are off by more than 10%."


def test_a_draft_for_one_pass_has_a_row_for_each_way(result: dict[str, Any]) -> None:
    both = swept("in one pass", {}, [0, 6], 2.0)
    both["figures"] = [{**figures, "parallel_lengths": [1.5, 1.8, 1.9]} for figures in both["figures"]]
    record = {**result, "rows": [served("draft_parallel")]}
    made = joined([both], record)
    lengths = {row["method"]: row["mean_acceptance_length"] for row in made["rows"] if "num_positions" in row}
    assert lengths == {"draft": 2.0, "draft_parallel": 1.8}
    assert all(row["predicted_speedup"] is None for row in made["rows"] if row["method"] == "draft_parallel")
    assert made["rows"][-1]["train_tokens"] == 2000
    assert "in one pass, all at once" in levers({**made, "sweep": result["sweep"]})


def test_the_sibling_is_trained_with_the_built_drafts_settings() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "reference.yaml").read_text())["recover"]
    (command,) = re.findall(r"\) recover (.*?)\n\t\$", (ROOT / "Makefile").read_text(), re.DOTALL)
    given = {name: yaml.safe_load(value) for name, value in re.findall(r"--set (\w+)=(\S+)", command)}
    assert given.pop("from_scratch") is True
    assert RecoverSettings(**given) == RecoverSettings(**recipe)
