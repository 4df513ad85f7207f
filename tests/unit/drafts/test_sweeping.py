from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from drafts.building import read_recipe
from drafts.sweeping import FILE, Lever, read_sweep, render, run_sweep, varied
from stages.errors import InputError
from tests.unit.pruning import pico


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    pico.save(pico.LLAMA.model(), folder / "target")
    for split in ("train", "validation"):
        lines = [{"kind": kind, "prompt": f"{split} {kind} {i}"} for kind in ("code", "chat") for i in range(24)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "name": "pico", "target": "target", "out": str(folder / "unused"), "max_model_len": 64,
        "prompts": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "prune": {"method": "explicit", "layers": [0, 3]},
        "distill": {"backend": "transformers", "max_tokens": 8},
        "recover": {"tokens": 500, "batch_tokens": 128, "mixed_precision": "no"},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def write(place: Path, levers: dict[str, object]) -> Path:
    file = place / "sweep.yaml"
    answers = {"backend": "transformers", "max_tokens": 8, "max_model_len": 64}
    sweep = {
        "recipe": "recipe.yaml",
        "out": str(place / "out"),
        "levers": levers,
        "answers": answers,
        "recover": {"tokens": 600},
    }
    file.write_text(yaml.safe_dump(sweep))
    return file


def test_levers_share_stages_and_are_judged_alike(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levers = {
        "merged": {"merge": ["base", "other seed"]},
        "base": {},
        "other seed": {"recover": {"seed": 1}},
        "one layer": {"prune": {"method": "first", "keep": 1}},
        "on its own": {"after": "base"},
        "as pruned": {"untrained": True},
    }
    rows = {row["lever"]: row for row in run_sweep(write(place, levers))}
    assert rows.keys() == levers.keys()
    assert rows["base"]["kept_layers"] == rows["merged"]["kept_layers"] == [0, 3]
    assert rows["one layer"]["kept_layers"] == [0]
    stages = [folder.name.split("-")[0] for folder in (place / "out" / "stages").iterdir()]
    assert sorted(stages) == ["data", "data", "draft", "draft", "draft", "draft", "merged", "pruned", "pruned"]
    assert rows["on its own"]["train_tokens"] >= 1200, "both rounds"
    assert rows["merged"]["train_tokens"] == rows["base"]["train_tokens"] + rows["other seed"]["train_tokens"]
    assert (rows["as pruned"]["train_tokens"], rows["as pruned"]["kept_layers"]) == (0, [0, 3])
    for row in rows.values():
        assert {(f["kind"], f["temperature"]) for f in row["figures"]} == {
            (kind, t) for kind in ("code", "chat") for t in (0.0, 1.0)
        }
        assert [f["positions"] for f in row["figures"]] == [f["positions"] for f in rows["base"]["figures"]]
    assert 600 <= rows["base"]["train_tokens"] < 1200, "the budget of the sweep, not the recipe's 500"
    assert (place / "out" / "drafts" / "other-seed" / "model.safetensors").is_file()
    before = {path: path.stat().st_mtime_ns for path in (place / "out" / "stages").rglob("*")}
    monkeypatch.setattr("drafts.sweeping.judge", None)  # nothing is judged again
    again = run_sweep(write(place, levers))
    assert before == {path: path.stat().st_mtime_ns for path in (place / "out" / "stages").rglob("*")}
    assert json.loads((place / "out" / FILE).read_text()) == again
    console = Console(file=io.StringIO(), width=120)
    render(again, 3, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "one layer" in shown


@pytest.mark.parametrize(
    ("levers", "message"),
    [
        ({"a": {"recover": {"kl_wait": 1}}}, "lever 'a', recover: unknown key 'kl_wait': did you mean 'kl_weight'"),
        ({"a": {"prune": {"keep": 1, "remove": 2, "method": "first"}}}, "give one of keep, remove and layers"),
        ({"a": {}, "b": {"merge": ["a", "c"]}}, "lever 'b' starts from 'c'; it can start from a"),
        ({"a": {"distil": {}}}, "did you mean 'distill'"),
        ({"a": {}, "b": {"after": "a"}, "c": {"after": "b"}}, "lever 'c' starts from 'b'; it can start from a"),
        ({"a": {}, "b": {"after": "a", "prune": {"layers": [1]}}}, "lever 'b' keeps other parts than 'a'"),
        ({"a": {}, "b": {"after": "a", "recover": {"ce_weight": 1}}}, "lever 'b': a draft's own answers teach nothing"),
        ({"a": {"prune": {"mlp_width": 600}}}, "mlp_width must be from 1 to 47"),
        ({"a": {"prune": {"layers": [9]}}}, "9"),
        ({"T=1": {}, "t 1": {}}, "lever 't 1' has the folder 't-1', as has 'T=1'"),
        ({"a": {}, "b": {}, "c": {"after": "d", "merge": ["a", "b"]}}, "after and merge exclude each other"),
        ({}, "at least 1"),
    ],
)
def test_levers_that_cannot_be_are_refused_before_any_work(
    place: Path, levers: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_sweep(write(place, levers))


def test_a_lever_keeps_what_the_recipe_hands_to_the_engine() -> None:
    """Arguments of the engine are no part of what a stage is made from, so a dump of its settings leaves them out."""
    recipe = read_recipe(Path(__file__).parents[3] / "recipes" / "llama-3.1-70b.yaml")
    assert recipe.distill.engine_args == ("--tensor-parallel-size", "4")
    assert varied(recipe, "x", Lever(distill={"max_tokens": 8})).distill.engine_args == recipe.distill.engine_args
