"""From measured files to draft.json and RESULTS.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.comparison_render import off
from benchmarks.draft import build_seconds, joined, lever_rows, limits, longer, tokens_at_one, weights
from benchmarks.levers_render import lever_cells, levers, shapes
from drafts.measurements import Acceptance, FirstToken, Measurements, StepCost
from drafts.training import RecoverSettings
from tests.unit.pruning import pico

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


def alone(
    method: str, kind: str, temperature: float, tpot: float, length: float | None, speedup: float
) -> dict[str, Any]:
    return {
        **served(method), "kind": kind, "temperature": temperature, "tpot_s": tpot, "mean_acceptance_length": length,
        "speedup": speedup,
    }  # fmt: skip


def of_shapes(**folders: str) -> dict[str, Any]:
    """A comparison at one request: plain, a draft whose step takes 1.4 plain ones, and one whose step takes 1.8."""
    rows = [
        alone(method, kind, t, tpot, length, speedup)
        for kind in ("chat", "code")
        for t in (0.0, 1.0)
        for method, tpot, length, speedup in (
            ("plain", 0.02, None, 1.0),
            ("two", 0.014, 2.0, 1.3),
            ("three", 0.018, 2.0, 1.1),
        )
    ]
    return {"settings": {"drafts": folders}, "rows": rows}


SHAPES = of_shapes(two="build/drafts/recipe", three="build/drafts/deeper")


def cost(method: Any, tokens: int, seconds: float) -> StepCost:
    return StepCost(
        method=method, concurrency=1, num_speculative_tokens=tokens, seconds=seconds, low=seconds, high=seconds
    )


def first(method: Any, kind: str, seconds: float) -> FirstToken:
    return FirstToken(method=method, kind=kind, seconds=seconds, later_tokens=20)


MEASURED = Measurements(
    costs=(cost("plain", 0, 0.02), cost("verify", 6, 0.024), cost("draft", 2, 0.026), cost("draft", 6, 0.03)),
    acceptances=(Acceptance(kind="code", temperature=0.0, histogram=(1, 1, 1)),),
    first_tokens=tuple(
        first(method, kind, seconds) for kind in ("chat", "code") for method, seconds in (("plain", 0.05), ("draft", 0.06))
    ),
)  # fmt: skip
"""Of the pair: a step with two tokens takes 26 ms, a draft token a twentieth of a plain step."""


@pytest.fixture
def result() -> dict[str, Any]:
    sweep = [
        {**swept("recipe", {}, [0, 6], 2.0), "weight": 1.0},
        {**swept("deeper", {"prune": {"layers": [0, 3, 6]}}, [0, 3, 6], 2.5), "weight": 1.5},
        {**swept("narrow", {"prune": {"mlp_width": 8}}, [0, 6], 1.7), "weight": 0.8},
        {**swept("longer", {"recover": {"tokens": 9000}}, [0, 6], 2.2), "weight": 1.0},
        {**swept("sibling from scratch", {"recover": {"from_scratch": True}}, [0, 6], 1.6), "weight": 1.0},
    ]
    record = dict.fromkeys(("inputs", "date", "git_revision", "enforce_eager", "choice")) | {
        "settings": {"max_tokens": 8, "repeats": 1, "seed": 0, "drafts": {"sibling": "build/sibling"}},
        "versions": {"vllm": "1", "torch": "2"},
        "hardware": {"cpu": "c", "cores": 2, "memory_gib": 4},
        "rows": [served(method) for method in ("plain", "sibling", "recipe", "draft")],
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 2},
        "trained": {
            "draft": {"train_seconds": 240.1, "train_tokens": 9000}, "sibling": {"train_seconds": 240.3, "train_tokens": 9500}
        },
    }  # fmt: skip
    swept_on = {"hardware": {"cpu": "another", "cores": 4, "memory_gib": 8}, "date": "2026-01-02T03:04:05+00:00"}
    long = longer({**record, "settings": {"max_tokens": 99}})
    more = {"costs": [], "limits": limits(MEASURED), "build_seconds": {"prune": 4.0, "measure": None, "recover": 56.0}}
    more["costs"] = [{
        "concurrency": 1, "num_speculative_tokens": 6, "verify": 1.2, "verify_low": 1.1, "verify_high": 1.3, "draft": 0.05,
        "draft_low": 0.04, "draft_high": 0.06, "steps": [1.25, 1.3],
    }]  # fmt: skip
    return {**joined(sweep, record, SHAPES, MEASURED), **more, "long": long, "sweep": swept_on}


def test_levers_have_the_length_of_the_served_number_of_tokens_and_a_prediction_from_the_pairs_step_costs_and_their_weight(
    result: dict[str, Any],
) -> None:
    rows = {
        r["lever"]: r
        for r in result["rows"]
        if r["num_positions"] is not None and (r["kind"], r["temperature"]) == ("code", 0.0)
    }
    assert {name: row["mean_acceptance_length"] for name, row in rows.items()} == {
        "recipe": 2.0, "deeper": 2.5, "narrow": 1.7, "longer": 2.2, "sibling from scratch": 1.6
    }  # fmt: skip
    assert rows["recipe"]["predicted_speedup"] == pytest.approx((20 * 0.02 + 0.05) / (20 / 2.0 * 0.026 + 0.06))
    assert rows["longer"]["predicted_speedup"] == pytest.approx((20 * 0.02 + 0.05) / (20 / 2.2 * 0.026 + 0.06))
    assert rows["deeper"]["predicted_speedup"] == pytest.approx((20 * 0.02 + 0.05) / (20 / 2.5 * 0.027 + 0.065))
    assert rows["narrow"]["predicted_speedup"] == pytest.approx((20 * 0.02 + 0.05) / (20 / 1.7 * 0.0256 + 0.058))
    assert {name: row["speedup"] for name, row in rows.items() if row["speedup"]} == {"recipe": 1.3, "deeper": 1.1}
    served_one = next(r for r in result["rows"] if r["method"] == "draft" and r["num_positions"] is None)
    assert served_one["predicted_speedup"] == rows["recipe"]["predicted_speedup"]
    assert rows["sibling from scratch"]["method"] == "sibling"
    assert [(r["method"], r["lever"], r["train_seconds"]) for r in result["rows"] if r["num_positions"] is None] == [
        ("plain", None, None), ("sibling", "from scratch, as long", 240.3), ("draft", "recipe", 60.4),
        ("chosen", "the reference build", 240.1),
    ]  # fmt: skip
    assert len({tuple(row) for row in result["rows"]}) == 1, "all rows have the same keys"


def test_one_lever_of_each_shape_has_a_line_with_its_step_and_speed(result: dict[str, Any]) -> None:
    assert shapes(result).splitlines()[2:] == [
        "| recipe | 2 | 1.40 (1.40–1.40) | 2.00 / 2.00 | 1.30 / 1.30 | 2.00 / 2.00 | 1.30 / 1.30 |",
        "| deeper | 3 | 1.80 (1.80–1.80) | 2.00 / 2.00 | 1.10 / 1.10 | 2.00 / 2.00 | 1.10 / 1.10 |",
    ]


def test_the_section_lists_the_best_lever_first_and_what_was_served(result: dict[str, Any]) -> None:
    text = levers(result)
    assert text.index("| deeper |") < text.index("| recipe |") < text.index("| narrow |")
    assert "| sibling | code | 1 | – | 0 | 50 |" in text
    assert "| 1 | 1.20 (1.10–1.30) | 0.050 (0.040–0.060) | 1.25 1.30 |" in text
    assert "| code | 4 | 1.40 | 50 ms | 60 ms | 20.0 of 20.0 ms | 2.62x | 4.67 |" in text
    assert "took 1.0 minutes: prune 4 s, recover 56 s." in text
    assert "Trained on another, 4 cores, 8 GiB, 2026-01-02." in text
    of_long = text.partition("### Longer answers")[2]
    assert "up to 99 tokens" in of_long
    assert "| chosen | code | 1 | – | 0 | 50 |" in of_long
    assert "| draft | code |" in of_long, "the recipe's"
    rows = [row for row in result["rows"] if row["lever"] == "recipe" and row["num_positions"] is not None]
    assert lever_cells(rows) == [
        "recipe", "0, 6", "60", "2,000", "0.500", "0.400", "2.00", "2.00", "2.00", "2.00", "1.30", "1.30", "1.41", "1.41",
        "1.30", "1.30",
    ]  # fmt: skip


@pytest.mark.parametrize(("config", "own"), [(None, "plain"), ({"method": "suffix"}, "suffix")])
def test_what_was_chosen_has_rows_as_chosen_also_where_it_is_no_draft(config: dict[str, Any] | None, own: str) -> None:
    keys = ("inputs", "date", "git_revision", "enforce_eager", "versions", "hardware", "choice")
    record = dict.fromkeys(keys) | {"settings": {"drafts": {}, "num_speculative_tokens": 2}}
    rows = [served(method) for method in ("plain", "suffix", "sibling")]
    made = joined([swept("recipe", {}, [0, 6], 2.0)], {**record, "rows": rows, "speculative_config": config}, SHAPES)
    methods = [row["method"] for row in made["rows"] if row.get("num_positions") is None]
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
    made = joined([both], record, of_shapes(four="build/drafts/recipe", draft_parallel="build/drafts/in-one-pass"))
    lengths = {
        row["method"]: row["mean_acceptance_length"] for row in made["rows"] if row.get("num_positions") is not None
    }
    assert lengths == {"draft": 2.0, "draft_parallel": 1.8}
    assert made["rows"][-1]["lever"] is None, "no folder is told here"
    assert "in one pass, all at once" in levers({**result, **made})


def test_a_draft_for_one_pass_is_predicted_and_served_in_that_way_only() -> None:
    both = swept("in one pass", {"recover": {"parallel_tokens": 2}}, [0, 6], 2.0)
    both["figures"] = [{**figures, "parallel_lengths": [1.5, 1.8, 1.9]} for figures in both["figures"]]
    comparison = of_shapes(two="build/drafts/recipe", draft_parallel="build/drafts/in-one-pass")
    for row in comparison["rows"]:
        row["method"] = {"three": "draft_parallel"}.get(row["method"], row["method"])
    record = {"speculative_config": {"method": "draft_model", "num_speculative_tokens": 2}}
    both["weight"] = 1.0
    made = lever_rows([{**swept("recipe", {}, [0, 6], 2.0), "weight": 1.0}, both], record, comparison, MEASURED)
    of = {(row["lever"], row["method"]): row for row in made if (row["kind"], row["temperature"]) == ("code", 0.0)}
    assert of["in one pass", "draft"]["predicted_speedup"] == of["recipe", "draft"]["predicted_speedup"]
    assert of["in one pass", "draft"]["speedup"] is None
    assert of["in one pass", "draft_parallel"]["speedup"] == 1.1
    assert of["in one pass", "draft_parallel"]["predicted_speedup"] is None, "such steps were not measured"


def test_a_pair_s_greedy_drafting_is_a_lever_of_the_method_draft(result: dict[str, Any]) -> None:
    record = {
        **result,
        "rows": [served("draft_greedy")],
        "trained": {"draft": {"train_seconds": 240.1, "train_tokens": 9000}},
    }
    (row,) = joined([], record, SHAPES)["rows"]
    assert (row["method"], row["lever"], row["train_seconds"]) == (
        "draft",
        "the reference build, greedy drafting",
        240.1,
    )
    assert "| draft_greedy | code | 1 |" in levers({**result, "rows": [*result["rows"], row]})


def test_drafts_are_weighed_and_a_builds_stages_timed(tmp_path: Path) -> None:
    small, large = (pico.save(pico.LLAMA.model(), tmp_path / name) for name in ("small", "large"))
    (row,) = weights([{**swept("recipe", {}, [0], 2.0), "draft": str(large)}], small)
    assert row["weight"] == 1.0
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "run.json").write_text('{"wall_s": 12.5}')
    assert build_seconds(tmp_path) == {"prune": None, "distill": None, "recover": 12.5, "measure": None, "choose": None}


def test_the_drafts_beside_the_built_one_are_trained_with_its_settings() -> None:
    recipe = yaml.safe_load((ROOT / "recipes" / "reference.yaml").read_text())["recover"]
    makefile = (ROOT / "Makefile").read_text()
    (as_long,) = re.findall(r"^AS_LONG := (.*)$", makefile, re.MULTILINE)
    given = {name: yaml.safe_load(value) for name, value in re.findall(r"--set (\w+)=(\S+)", as_long)}
    assert RecoverSettings(**given) == RecoverSettings(**recipe)
    assert len(re.findall(r"\) recover .*\$\(AS_LONG\)", makefile)) == len(re.findall(r"\) recover ", makefile)) == 2


def test_drafts_are_judged_with_the_number_of_tokens_that_they_were_served_with_at_one_request() -> None:
    config = {"method": "draft_model", "num_speculative_tokens": 6}
    assert tokens_at_one({"speculative_config": config}) == 6
    schedule = [[1, 2, 4], [3, 8, 6]]
    assert tokens_at_one({"speculative_config": {**config, "num_speculative_tokens_per_batch_size": schedule}}) == 4
    for other in (None, {"method": "suffix", "num_speculative_tokens": 8}):
        assert tokens_at_one({"speculative_config": other, "settings": {"num_speculative_tokens": 3}}) == 3
