"""The stage on pico models: from target and text to a sliced checkpoint, interrupted or not."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pruning import checkpoint
from pruning.nuteprune import training
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.stage import prune_masks
from pruning.nuteprune.state import FILE, State
from pruning.nuteprune.teachers import snapshot_due
from pruning.plan import load_plan
from pruning.prune import prune_by_plan
from pruning.settings import read_prune_settings
from stages import provenance
from stages.errors import InputError
from stages.settings import validate

from .. import pico

FEW = {
    "sparsity": 0.3, "steps": 54, "finetune_share": 0.12, "mask_rate": 0.5, "multiplier_rate": 0.7,
    "snapshot_every": 0.03, "teacher_gap": 2, "sequence_length": 16, "batch_tokens": 64, "mixed_precision": "no",
    "multiple_of": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tied Llama, a text, and what one whole run made of them."""
    folder = tmp_path_factory.mktemp("nuteprune")
    target = pico.save(pico.LLAMA.model(), folder / "target")
    text = folder / "text.txt"
    text.write_text("".join(f"def f{i}(x):\n    return x * {i} + {i % 7}\n" for i in range(60)))
    prune_masks(target, folder / "whole", settings(text))
    return {"target": target, "text": text, "whole": folder / "whole"}


def settings(text: Path, **changes) -> NutePruneSettings:
    return NutePruneSettings(calibration=(text,), **{**FEW, **changes})


def interrupted_at_once(target: Path, out: Path, chosen: NutePruneSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that Ctrl-C ends in its first step, which is taken all the same."""
    real = training.Trainer.search_step

    def stop(self, batch):
        signal.raise_signal(signal.SIGINT)
        return real(self, batch)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.Trainer, "search_step", stop)
        prune_masks(target, out, chosen)


def test_a_run_reaches_its_sparsity_and_writes_what_it_kept(made):
    record = provenance.read(made["whole"])
    assert record is not None
    figures, curve = record["figures"], record["curve"]
    assert figures["expected_sparsity"] == pytest.approx(0.3, abs=0.05)  # the Lagrangian alone
    assert figures["realised_sparsity"] == pytest.approx(0.3, abs=0.02)
    plan = load_plan(made["whole"])
    assert plan.realised_sparsity == figures["realised_sparsity"]
    model = checkpoint.load_model(made["whole"])
    before = checkpoint.load_model(made["target"])

    def linear(one: torch.nn.Module) -> int:
        return sum(p.numel() for name, p in one.named_parameters() if "_proj.weight" in name)

    assert 1 - linear(model) / linear(before) == pytest.approx(plan.realised_sparsity, abs=1e-9)
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == plan.widths
    assert all(width % 4 == 0 for width in plan.widths)
    assert figures["num_snapshots"] >= 3
    assert {"intact"} < {str(step["teacher"]) for step in curve}
    assert curve[0]["sparsity"] < 0.1
    assert not (made["whole"] / FILE).exists()
    assert record["peak_memory_mib"] > 0


def test_once_it_has_arrived_the_teacher_slides_back_to_the_intact_model(made):
    record = provenance.read(made["whole"])
    assert record is not None
    search = [step for step in record["curve"] if "sparsity" in step]
    arrived = next(place for place, step in enumerate(search) if step["sparsity"] >= 0.3 - FEW["snapshot_every"] / 2)
    before, after = (
        [-1 if step["teacher"] == "intact" else step["teacher"] for step in part]
        for part in (search[: arrived + 1], search[arrived + 1 :])
    )
    assert before == sorted(before), "while it grows sparser, so does its teacher"
    assert after == sorted(after, reverse=True)
    assert max(before) >= max(after) >= 0
    assert after[-1] == -1
    taken, last = 0, 0.0
    for step in search[: arrived + 1]:
        if snapshot_due(step["sparsity"], last, FEW["snapshot_every"]):
            taken, last = taken + 1, step["sparsity"]
    assert record["figures"]["num_snapshots"] == taken, "none is taken beyond the wanted sparsity"


def test_a_search_that_falls_short_and_one_that_no_snapshot_taught_say_so(made, tmp_path, capsys):
    prune_masks(made["target"], tmp_path / "short", settings(made["text"], steps=6, multiplier_rate=0.01))
    said = capsys.readouterr().err
    assert "instead of 0.3; the rest is cut by the masks' order; raise multiplier_rate (0.01)" in said
    assert "no snapshot ever taught: 0 were taken, and the teacher is 2 behind" in said
    prune_masks(made["target"], tmp_path / "alone", settings(made["text"], steps=6, teachers="intact"))
    said = capsys.readouterr().err
    assert "instead of 0.3" in said
    assert "no snapshot" not in said


def test_what_a_file_of_a_run_gives_back_can_be_trained_on_another_device(made, tmp_path, monkeypatch):
    interrupted_at_once(made["target"], tmp_path / "out", settings(made["text"]), monkeypatch)
    values = torch.load(next(tmp_path.glob(f"*/{FILE}")), weights_only=True)["state"]
    found = State.parse(values, torch.device("meta"))
    tensors = [*found.log_alphas.tensors().values(), *(m for pair in found.lora.values() for m in pair)]
    assert all(tensor.is_leaf and tensor.requires_grad and tensor.device.type == "meta" for tensor in tensors)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_it_is_written_in_the_type_it_is_stored_in_and_not_trained_in_float16(made, tmp_path, stored):
    target = pico.save(pico.LLAMA.model().to(stored), tmp_path / "target")
    pico.edit_config(target, dtype=None)
    prune_masks(target, tmp_path / "out", settings(made["text"], steps=4))
    assert checkpoint.load_model(tmp_path / "out").dtype == stored
    if stored == torch.float16:
        with pytest.raises(InputError, match=r"dtype: auto is float16 for .*; give float32 or bfloat16"):
            prune_masks(target, tmp_path / "auto", settings(made["text"], steps=4, dtype="auto"))


def test_the_command_finds_the_method_and_a_plan_alone_is_not_carried_out(made, tmp_path):
    read = read_prune_settings({"method": "nuteprune", "sparsity": 0.2}, "--set")
    assert isinstance(read, NutePruneSettings)
    with pytest.raises(InputError, match="the plan alone does not give them again"):
        prune_by_plan(made["target"], made["whole"], tmp_path / "out")


def test_a_finished_run_is_not_run_again(made, monkeypatch):
    monkeypatch.setattr(training.Trainer, "train", lambda *_: pytest.fail("trained again"))
    assert prune_masks(made["target"], made["whole"], settings(made["text"])) == load_plan(made["whole"])


@pytest.mark.parametrize(("step", "phase"), [(7, "search_step"), (44, "search_step"), (3, "finetune_step")])
def test_interrupted_and_resumed_equals_uninterrupted(made, tmp_path, monkeypatch, step, phase):
    calls, real = 0, getattr(training.Trainer, phase)

    def interrupted(self, batch):
        nonlocal calls
        calls += 1
        if calls == step:
            signal.raise_signal(signal.SIGINT)  # the step is taken all the same
        return real(self, batch)

    monkeypatch.setattr(training.Trainer, phase, interrupted)
    with pytest.raises(KeyboardInterrupt):
        prune_masks(made["target"], tmp_path / "out", settings(made["text"]))
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(training.Trainer, phase, real)
    with pytest.raises(
        InputError, match=r"setting 'mask_rate' changed since the interrupted run: it was 0\.5, now 0\.2"
    ):
        prune_masks(made["target"], tmp_path / "out", settings(made["text"], mask_rate=0.2))
    prune_masks(made["target"], tmp_path / "out", settings(made["text"], checkpoint_every_s=99))
    whole, halved = (checkpoint.load_model(folder) for folder in (made["whole"], tmp_path / "out"))
    torch.testing.assert_close(dict(halved.named_parameters()), dict(whole.named_parameters()), atol=1e-6, rtol=0)
    records = [provenance.read(folder) for folder in (made["whole"], tmp_path / "out")]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0]["curve"] == records[1]["curve"]


def test_other_text_than_the_interrupted_runs_is_refused(made, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text(made["text"].read_text())

    interrupted_at_once(made["target"], tmp_path / "out", settings(text), monkeypatch)
    text.write_text(made["text"].read_text() + "more")
    with pytest.raises(InputError, match=r"input '.*text\.txt' changed since the interrupted run"):
        prune_masks(made["target"], tmp_path / "out", settings(text))


@pytest.mark.parametrize(
    ("changes", "case"),
    [
        ({"teachers": "intact", "export": "uniform", "finetune_loss": "text", "hidden": True}, "llama-untied"),
        ({"neuron_mask": "product", "exact": False, "finetune_share": 0.0, "hidden_loss": "relative"}, "qwen3-tied"),
        ({"kl_weight": 0.0, "tokens": 500, "mixed_precision": "bf16"}, "qwen3-untied"),
    ],
)
def test_options_and_families_go_the_whole_way(changes, case, made, tmp_path):
    target = pico.save(next(one for one in pico.CASES if one.name == case).model(), tmp_path / "target")
    plan = prune_masks(target, tmp_path / "out", settings(made["text"], **{"steps": 12, **changes}))
    model, tokenizer = checkpoint.load_target(tmp_path / "out")
    prompt = tokenizer("def f", return_tensors="pt")["input_ids"]
    assert model.generate(prompt, max_new_tokens=4, min_new_tokens=4, pad_token_id=0).shape[1] == prompt.shape[1] + 4
    if "export" in changes:
        assert len(set(plan.widths)) == 1
        assert type(model).__name__ == "LlamaForCausalLM"
    if changes.get("teachers") == "intact":
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        assert {step["teacher"] for step in record["curve"]} == {"intact", "text"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sparsity": 0.99}, r"0\.99 cannot be reached.*the nearest reachable is 0\.\d+"),
        ({"multiple_of": 5}, "does not divide"),
        ({"batch_tokens": 9000}, r"\d+ tokens to train on, 9000 are needed \(one batch\)"),
        ({"calibration": ()}, "no calibration text given"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_no_folder(changes, said, made, tmp_path):
    wanted = NutePruneSettings(**{"calibration": (made["text"],), **FEW, **changes})
    with pytest.raises(InputError, match=said):
        prune_masks(made["target"], tmp_path / "out", wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sparsity": 1.0}, "'sparsity': Input should be less than 1, given 1.0"),
        ({"sparsity": 0}, "greater than 0"),
        ({"sparsty": 0.2}, "did you mean 'sparsity'"),
        ({"kl_weight": 0, "hidden_weight": 0}, "both 0"),
        ({"teachers": "many"}, "'numerous' or 'intact'"),
    ],
)
def test_settings_outside_their_range_are_refused(values, said):
    with pytest.raises(InputError, match=said):
        validate(NutePruneSettings, values, "--set")


def test_architectures_that_do_not_fit_are_named(made, tmp_path):
    qwen2 = next(case for case in pico.CASES if case.name == "qwen2-tied")
    target = pico.save(qwen2.model(), tmp_path / "qwen2")
    with pytest.raises(InputError, match=r"hidden: .* Qwen2ForCausalLM"):
        prune_masks(target, tmp_path / "out", settings(made["text"], hidden=True))
    with pytest.raises(InputError, match="method nuteprune needs a model whose layers have one shape"):
        prune_masks(made["whole"], tmp_path / "out", settings(made["text"]))


def test_weights_that_are_not_numbers_are_refused_with_their_layer(made, tmp_path):
    model = pico.LLAMA.model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    target = pico.save(model, tmp_path / "target")
    with pytest.raises(InputError, match="the loss of layer 2 is not a number"):
        prune_masks(target, tmp_path / "out", settings(made["text"]))


def test_the_multipliers_rate_follows_the_sparsity_and_the_steps_of_the_search():
    text = (Path("text"),)
    half, quarter = (NutePruneSettings(sparsity=share, calibration=text, steps=160) for share in (0.5, 0.25))
    assert half.rate_of_multipliers == pytest.approx(6490 * 0.5**1.6 / 112)
    assert half.rate_of_multipliers / quarter.rate_of_multipliers == pytest.approx(2**1.6)
    assert NutePruneSettings(sparsity=0.5, calibration=text, steps=320).rate_of_multipliers == pytest.approx(
        half.rate_of_multipliers / 2
    )
    assert NutePruneSettings(calibration=text, multiplier_rate=3).rate_of_multipliers == 3


def test_a_search_that_falls_a_little_short_says_nothing():
    wanted = NutePruneSettings(sparsity=0.5, calibration=(Path("text"),), multiplier_rate=20)
    state = SimpleNamespace(figures={"expected_sparsity": 0.483}, curve=[{"teacher": 0}], snapshots=[1])
    assert training.Trainer.shortcomings(SimpleNamespace(settings=wanted, state=state)) == []
    state.figures["expected_sparsity"] = 0.44
    (line,) = training.Trainer.shortcomings(SimpleNamespace(settings=wanted, state=state))
    assert line == (
        "the search ended at a sparsity of 0.440 instead of 0.5; the rest is cut by the masks' order; raise multiplier_rate (20)"
    )
    state.figures["expected_sparsity"] = 0.483
    inexact = wanted.model_copy(update={"exact": False})
    (line,) = training.Trainer.shortcomings(SimpleNamespace(settings=inexact, state=state))
    assert "the model stays larger" in line


def test_a_search_that_goes_too_far_says_so():
    wanted = NutePruneSettings(sparsity=0.3, calibration=(Path("text"),), multiplier_rate=30)
    curve = [{"teacher": 0}]
    state = SimpleNamespace(figures={"expected_sparsity": 0.41}, curve=curve, snapshots=[1])
    (line,) = training.Trainer.shortcomings(SimpleNamespace(settings=wanted, state=state))
    assert line == (
        "the search ended at a sparsity of 0.410 instead of 0.3; neurons are opened again to fit; lower multiplier_rate (30)"
    )
    state.figures["expected_sparsity"] = 0.3 + wanted.snapshot_every / 2
    assert training.Trainer.shortcomings(SimpleNamespace(settings=wanted, state=state)) == []
