from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from drafts.merging import MergeSettings, check_parents, merge, slerp
from drafts.trained_on import TrainedOn, read_trained_on, write_trained_on
from pruning.checkpoint import load_model, save_checkpoint
from pruning.plan import load_plan
from pruning.prune import PruneSettings, prune
from stages.errors import InputError
from stages.hashing import checkpoint_hash
from tests.unit.pruning import pico


def test_the_ends_are_the_parents_and_the_middle_is_on_the_arc() -> None:
    a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b, atol=1e-6, rtol=0)
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([[math.sqrt(2.0), math.sqrt(2.0)]]))
    third = slerp(a, b, 1 / 3)
    assert math.degrees(math.atan2(third[0, 1], third[0, 0])) == pytest.approx(30.0)


@pytest.mark.parametrize("b", [[1.0, 2.0], [1.000001, 2.0], [-1.0, -2.0], [0.0, 0.0]])
def test_linear_where_there_is_no_arc(b: list[float]) -> None:
    a, other = torch.tensor([1.0, 2.0]), torch.tensor(b)
    torch.testing.assert_close(slerp(a, other, 0.25), 0.75 * a + 0.25 * other)


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A target, two recoveries of one pruned model, and one of another plan."""
    folder = tmp_path_factory.mktemp("merging")
    target = pico.save(pico.LLAMA.model(), folder / "target")
    for name, layers, seed in (("first", (0, 3), 1), ("second", (0, 3), 2), ("other", (0, 4), 3)):
        prune(target, folder / name, PruneSettings(method="explicit", layers=layers))
        model = load_model(folder / name)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        plan = (folder / name / "plan.json").read_text()
        save_checkpoint(model, folder / name, folder / f"{name}-recovered")
        (folder / f"{name}-recovered" / "plan.json").write_text(plan)
    return {"target": target, **{name: folder / f"{name}-recovered" for name in ("first", "second", "other")}}


def test_every_tensor_of_the_merged_draft_lies_between_its_parents(parents: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(parents["target"], parents["first"], parents["second"], out, MergeSettings(share=0.3))
    first, second, merged = (dict(load_model(f).named_parameters()) for f in (parents["first"], parents["second"], out))
    assert first.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, slerp(first[name], second[name], 0.3))
    record = json.loads((out / "understudy.json").read_text())
    assert record["target_sha256"] == checkpoint_hash(parents["target"])
    assert len(record["merged_from"]) == 2
    before = (out / "run.json").read_text()
    merge(parents["target"], parents["first"], parents["second"], out, MergeSettings(share=0.3))
    assert (out / "run.json").read_text() == before


def test_a_merged_draft_has_seen_what_both_parents_had(parents: dict[str, Path], tmp_path: Path) -> None:
    seen = {"first": TrainedOn(frozenset(["a"]), frozenset(["x"])), "second": TrainedOn(frozenset(["b"]))}
    folders = {name: tmp_path / name for name in seen}
    for name, folder in folders.items():
        shutil.copytree(parents[name], folder)
    write_trained_on(folders["first"], seen["first"])
    merge(parents["target"], folders["first"], folders["second"], tmp_path / "half", MergeSettings())
    assert read_trained_on(tmp_path / "half") is None
    write_trained_on(folders["second"], seen["second"])
    merge(parents["target"], folders["first"], folders["second"], tmp_path / "both", MergeSettings())
    assert read_trained_on(tmp_path / "both") == TrainedOn(frozenset(["a", "b"]), frozenset(["x"]))


def test_parents_of_another_plan_or_target_are_refused(parents: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"keeps layers \[0, 4\]"):
        merge(parents["target"], parents["first"], parents["other"], tmp_path / "out", MergeSettings())
    stranger = pico.save(pico.LLAMA.model(seed=9), tmp_path / "stranger")
    with pytest.raises(InputError, match="target"):
        merge(stranger, parents["first"], parents["second"], tmp_path / "out", MergeSettings())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"settings": {"from_scratch": True}, "inputs": {"pruned": "a"}},
            r"b: was trained from scratch \(from_scratch\); only recoveries",
        ),
        (
            {"settings": {"from_scratch": False}, "inputs": {"pruned": "b"}},
            "b: was recovered from the weights b, .*a from a; recover both",
        ),
    ],
)
def test_a_parent_that_comes_from_other_weights_is_refused(
    parents: dict[str, Path], tmp_path: Path, record: dict[str, object], said: str
) -> None:
    for name in ("a", "b"):
        shutil.copytree(parents["first"], tmp_path / name)
    (tmp_path / "a" / "run.json").write_text(json.dumps({"settings": {}, "inputs": {"pruned": "a"}}))
    check_parents(checkpoint_hash(parents["target"]), tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=said):
        check_parents(checkpoint_hash(parents["target"]), tmp_path / "a", tmp_path / "b")


def test_a_parent_that_drafts_in_parallel_is_not_merged_with_one_that_does_not(
    parents: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(parents["first"], tmp_path / "parallel")
    pico.edit_config(tmp_path / "parallel", pard_token=7)
    with pytest.raises(InputError, match=r"its token for parallel drafting is 7, that of .* None; recover both"):
        check_parents(checkpoint_hash(parents["target"]), parents["second"], tmp_path / "parallel")


def test_parents_with_other_channels_are_refused(parents: dict[str, Path], tmp_path: Path) -> None:
    for name, channels in (("a", (0, 1)), ("b", (2, 3))):
        plan = load_plan(parents["first"])
        (tmp_path / name).mkdir()
        plan.model_copy(update={"kept_channels": (channels,) * len(plan.kept_layers)}).save(
            tmp_path / name / "plan.json"
        )
    with pytest.raises(InputError, match=r"b: keeps other channels of the MLPs than .*a; only recoveries"):
        check_parents(checkpoint_hash(parents["target"]), tmp_path / "a", tmp_path / "b")
