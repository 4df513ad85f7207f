"""Both published recoveries, whole, on each family: CFSP's guided LoRA, and self-data distillation with its merged pair."""

import json
from pathlib import Path

import pytest
import torch

from drafts.distilling import DATA, DistillSettings, distill, read_data
from drafts.merging import MergeSettings, merge
from drafts.recovery import recover
from drafts.training import RecoverSettings
from pruning.checkpoint import load_model
from pruning.plan import load_plan
from pruning.prune import PruneSettings, prune
from pruning.prune_width import prune_width
from pruning.settings import WidthSettings
from tests.unit.pruning import pico

FAMILIES = [case for case in pico.CASES if case.name in ("llama-tied", "llama-untied", "qwen3-tied", "qwen3-untied")]
ON_ANSWERS = RecoverSettings(
    kl_weight=0.0,
    ce_weight=1.0,
    prompt_weight=0.0,
    tokens=2000,
    batch_tokens=128,
    check_share=0.2,
    mixed_precision="no",
)


@pytest.fixture(params=FAMILIES, ids=lambda case: case.name)
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return pico.save(request.param.model(), tmp_path / "target")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Chat prompts with references, of two kinds."""
    lines = [
        {
            "kind": kind,
            "messages": [{"role": "user", "content": f"{kind}, what is {i}?"}],
            "reference": f"It is {kind} {i}.",
        }
        for kind in ("one", "two")
        for i in range(12)
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def answers(target: Path, prompts: Path, out: Path, mode: str, *kinds: str) -> Path:
    settings = DistillSettings(backend="transformers", max_tokens=8, mixture={mode: 1.0}, kinds=kinds or None)  # type: ignore[dict-item]
    distill(target, prompts, out, settings)
    return out


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(input_ids=pico.ids(), use_cache=False).logits


def is_tied(folder: Path) -> bool:
    model = load_model(folder)
    return model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("lora_ranks", ["uniform", "important_first", "pruned_first"])
def test_a_narrowed_model_recovers_and_keeps_its_shape(
    target: Path, prompts: Path, tmp_path: Path, lora_ranks: str
) -> None:
    narrow, out = tmp_path / "narrow", tmp_path / "out"
    how = WidthSettings(
        sparsity=0.5, round_to=4, export="ragged", alpha=30, calibration=(prompts,), calibration_tokens=200
    )
    widths = prune_width(target, narrow, how).widths
    data = answers(target, prompts, tmp_path / "data", "direct")
    changes = {
        "method": "lora",
        "lora_rank": 2,
        "lora_ranks": lora_ranks,
        "optimizer": "adamw",
        "adam_learning_rate": 0.01,
    }
    recover(target, narrow, data, out, ON_ANSWERS.model_copy(update=changes))
    model = load_model(out)
    assert [layer.mlp.down_proj.in_features for layer in model.model.layers] == list(widths)
    assert load_plan(out) == load_plan(narrow)
    assert is_tied(out) == is_tied(target)
    assert torch.isfinite(logits(out)).all()
    assert not torch.equal(logits(out), logits(narrow))


def test_self_data_distillation_goes_from_rewrites_to_a_merged_model(
    target: Path, prompts: Path, tmp_path: Path
) -> None:
    pruned, folders = tmp_path / "pruned", {}
    prune(target, pruned, PruneSettings(method="angular", keep=3, calibration=(prompts,), calibration_tokens=200))
    for kind in ("one", "two"):
        data = answers(target, prompts, tmp_path / f"data-{kind}", "rewrite", kind)
        records = read_data(data / DATA)
        assert len(records) == 12, "no sample is dropped: one that fails its checks has the reference"
        for record in records:
            number = record["messages"][0]["content"].removeprefix(f"{kind}, what is ").removesuffix("?")
            assert (record["answer"] == f"It is {kind} {number}.") == (record["selected"] != "rewrite")
        folders[kind] = tmp_path / kind
        recover(target, pruned, data, folders[kind], ON_ANSWERS)
        assert not torch.equal(logits(folders[kind]), logits(pruned))
    merge(target, folders["one"], folders["two"], tmp_path / "merged", MergeSettings())
    assert len(load_model(tmp_path / "merged").model.layers) == 3
    assert is_tied(tmp_path / "merged") == is_tied(target)
    found = logits(tmp_path / "merged")
    assert torch.isfinite(found).all()
    assert all(not torch.equal(found, logits(folder)) for folder in folders.values())
