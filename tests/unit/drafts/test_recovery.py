"""Recovery on pico models, through the real stages: prune, distill with transformers, recover."""

import json
import signal
from pathlib import Path

import pytest
import torch

from drafts import recovery, training
from drafts.distilling import DATA, DistillSettings, distill, read_data
from drafts.examples import Example, collate
from drafts.recovery import recover
from drafts.teacher import Teacher
from drafts.trained_on import FILE, TrainedOn, read_trained_on, write_trained_on
from drafts.training import RecoverSettings, Trainer, learning_rate_factor
from pruning.checkpoint import load_model, load_target
from pruning.prune import PruneSettings, prune
from pruning.prune_width import prune_width
from pruning.settings import WidthSettings
from stages import provenance
from stages.errors import InputError
from stages.hashing import checkpoint_hash
from tests.unit.pruning import pico

DISTILL = DistillSettings(backend="transformers", max_tokens=12, concurrency=8)
RECOVER = RecoverSettings(tokens=4000, batch_tokens=256, check_share=0.2, mixed_precision="no", checkpoint_every_s=1000)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Target, pruned model and self-distilled data."""
    folder = tmp_path_factory.mktemp("recovery")
    target = pico.save(pico.LLAMA.model(), folder / "target")
    prompts = folder / "prompts.jsonl"
    lines = [{"kind": "code", "prompt": f"def f{i}("} for i in range(24)]
    lines += [{"kind": "chat", "messages": [{"role": "user", "content": f"what is {i}?"}]} for i in range(24)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prune(target, folder / "pruned", PruneSettings(keep=2))
    distill(target, prompts, folder / "data", DISTILL)
    return {"target": target, "prompts": prompts, "pruned": folder / "pruned", "data": folder / "data"}


def run(made: dict[str, Path], out: Path, settings: RecoverSettings = RECOVER) -> dict[str, float]:
    recover(made["target"], made["pruned"], made["data"], out, settings)
    record = provenance.read(out)
    assert record is not None
    return record["figures"]


def test_data_records_who_answered_and_how(made: dict[str, Path]) -> None:
    records = read_data(made["data"] / DATA)
    assert len(records) == 48
    assert {record["temperature"] for record in records} == {0.0, 1.0}
    assert provenance.read(made["data"])["inputs"]["target"] == checkpoint_hash(made["target"])  # type: ignore[index]


def test_greedy_answers_are_the_targets_own(made: dict[str, Path]) -> None:
    model, tokenizer = load_target(made["target"])
    record = next(r for r in read_data(made["data"] / DATA) if r["temperature"] == 0 and "prompt" in r)
    ids = tokenizer(record["prompt"], return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=DISTILL.max_tokens, do_sample=False)
    assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == record["answer"]


def test_an_interrupted_distillation_asks_only_what_is_missing(made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "data"
    distill(made["target"], made["prompts"], out, DISTILL)
    done = (out / DATA).read_text().splitlines(keepends=True)
    partial = tmp_path / ".data.partial"
    out.rename(partial)
    marked = [json.dumps({**json.loads(line), "answer": "kept"}) + "\n" for line in done[:5]]
    (partial / DATA).write_text("".join(marked) + done[5][:10])
    distill(made["target"], made["prompts"], out, DISTILL)
    records = read_data(out / DATA)
    assert len(records) == len(done)
    assert [record["answer"] for record in records[:5]] == ["kept"] * 5


@pytest.mark.parametrize("method", ["full", "lora"])
def test_recovery_brings_the_student_nearer_to_its_target(made: dict[str, Path], tmp_path: Path, method: str) -> None:
    rate = {"full": 0.01, "lora": 0.01}[method]
    settings = RECOVER.model_copy(update={"method": method, "adam_learning_rate": rate})
    before = run(made, tmp_path / "before", settings.model_copy(update={"tokens": 1, "warmup_share": 0.9}))
    after = run(made, tmp_path / "after", settings)
    assert after["overlap"] > before["overlap"] + 0.02


def test_a_draft_folder_is_a_plain_checkpoint_bound_to_its_target(made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "draft"
    run(made, out)
    bound = json.loads((out / "understudy.json").read_text())
    assert bound["target_sha256"] == checkpoint_hash(made["target"])
    assert (out / "README.md").read_text().startswith("# Draft of")
    assert "then trained on the target's own answers" in (out / "README.md").read_text()
    assert load_model(out).config.num_hidden_layers == 2
    assert (out / "tokenizer.json").read_bytes() == (made["target"] / "tokenizer.json").read_bytes()
    listed = read_trained_on(out)
    assert listed is not None
    assert listed.prompts == {record["id"] for record in read_data(made["data"] / DATA)}


@pytest.mark.parametrize("start_is_known", [True, False])
def test_a_draft_that_goes_on_from_another_has_seen_what_that_had(
    made: dict[str, Path], tmp_path: Path, start_is_known: bool
) -> None:
    start, out, short = tmp_path / "start", tmp_path / "draft", RECOVER.model_copy(update={"tokens": 1})
    run(made, start, short)
    (start / FILE).unlink()
    if start_is_known:
        write_trained_on(start, TrainedOn(frozenset(["earlier"])))
    run(made, out, short.model_copy(update={"start": start}))
    listed = read_trained_on(out)
    assert (listed is not None and listed.prompts > {"earlier"}) is start_is_known, "half a list would say too little"


def test_a_ragged_model_recovers_like_any_other(made: dict[str, Path], tmp_path: Path) -> None:
    narrow, text = tmp_path / "narrow", (made["prompts"],)
    settings = WidthSettings(
        sparsity=0.5, round_to=4, export="ragged", alpha=30, calibration=text, calibration_tokens=200
    )
    widths = prune_width(made["target"], narrow, settings).widths
    assert len(set(widths)) > 1
    recover(
        made["target"],
        narrow,
        made["data"],
        tmp_path / "out",
        RECOVER.model_copy(update={"tokens": 300, "method": "lora"}),
    )
    model = load_model(tmp_path / "out")
    assert [layer.mlp.up_proj.out_features for layer in model.model.layers] == widths
    before = load_model(narrow).parameters()
    assert any(not torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))
    assert f"{min(widths)} to {max(widths)} of 48 FFN channels" in (tmp_path / "out" / "README.md").read_text()


def test_recovery_resumes_to_the_same_weights(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption saves what was trained so far."""
    run(made, tmp_path / "whole")
    steps, real = 0, Trainer.step

    def interrupted(self: Trainer, batch: object, teacher: object) -> float:
        nonlocal steps
        steps += 1
        if steps == 4:
            signal.raise_signal(signal.SIGINT)  # the step is taken all the same
        return real(self, batch, teacher)  # type: ignore[arg-type]

    monkeypatch.setattr(training.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "halved")
    assert not (tmp_path / "halved").exists()
    monkeypatch.setattr(training.Trainer, "step", real)
    run(made, tmp_path / "halved")
    assert not (tmp_path / "halved" / recovery.CHECKPOINT).exists()
    whole, halved = load_model(tmp_path / "whole"), load_model(tmp_path / "halved")
    for (name, a), b in zip(whole.named_parameters(), halved.parameters(), strict=True):
        # Muon's bfloat16 iteration turns the last bit of a sum into 1e-4; a lost state or batch moves weights by 1e-2.
        assert torch.allclose(a, b, atol=1e-3), name


def test_a_plan_for_another_target_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    other = pico.save(pico.LLAMA.model(seed=5), tmp_path / "other")
    with pytest.raises(InputError, match="was made for the target"):
        recover(other, made["pruned"], made["data"], tmp_path / "out", RECOVER)


def test_a_recovery_without_a_loss_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all 0"):
        run(made, tmp_path / "out", RECOVER.model_copy(update={"kl_weight": 0.0}))


def test_remembered_hidden_states_give_the_same_logits(made: dict[str, Path]) -> None:
    model = load_model(made["target"])
    examples = [Example((1, 2, 3, 4, 5, 6), 2), Example((7, 8, 9), 1)]
    batch = collate(examples, [0, 1], prompt_weight=0.5)
    teacher = Teacher(model, cache_bytes=10**6)
    first, remembered = teacher.logits(batch), teacher.logits(collate(examples, [0, 1], prompt_weight=0.5))
    assert torch.allclose(first, remembered, atol=1e-5)
    direct = model(batch.ids_BT).logits[batch.rows_N, batch.columns_N]
    assert torch.allclose(first, direct, atol=1e-5)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    assert learning_rate_factor(0.0, 0.1) < 0.1
    assert learning_rate_factor(0.1, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(0.55, 0.1) == pytest.approx(0.5)
    assert learning_rate_factor(1.0, 0.1) == 0.0


@pytest.mark.parametrize("loss", ["reverse_kl_weight", "overlap_weight"])
def test_other_losses_train_too(made: dict[str, Path], tmp_path: Path, loss: str) -> None:
    untrained = run(made, tmp_path / "none", RECOVER.model_copy(update={"tokens": 1, "learning_rate": 1e-9}))
    trained = run(made, tmp_path / "some", RECOVER.model_copy(update={"kl_weight": 0.0, loss: 1.0}))
    assert trained["overlap"] > untrained["overlap"]


def test_a_sibling_starts_from_new_weights_of_the_same_shape(made: dict[str, Path], tmp_path: Path) -> None:
    short = RECOVER.model_copy(update={"tokens": 1, "learning_rate": 1e-9, "adam_learning_rate": 1e-9})
    run(made, tmp_path / "sibling", short.model_copy(update={"from_scratch": True}))
    assert "New weights in the shape of" in (tmp_path / "sibling" / "README.md").read_text()
    sibling, pruned = load_model(tmp_path / "sibling"), load_model(made["pruned"])
    for (name, ours), theirs in zip(sibling.named_parameters(), pruned.parameters(), strict=True):
        assert ours.shape == theirs.shape
        assert "norm" in name or not torch.allclose(ours, theirs, atol=1e-2)


def test_another_round_starts_from_a_draft_and_trains_on_what_it_says(made: dict[str, Path], tmp_path: Path) -> None:
    run(made, tmp_path / "first", RECOVER.model_copy(update={"tokens": 1000}))
    own = {"answerer": tmp_path / "first", "temperatures": (0.0,)}
    distill(made["target"], made["prompts"], tmp_path / "own", DISTILL.model_copy(update=own))
    records = read_data(tmp_path / "own" / DATA)
    assert {r["answerer_sha256"] for r in records} == {checkpoint_hash(tmp_path / "first")}
    assert {r["target_sha256"] for r in records} == {checkpoint_hash(made["target"])}
    model, tokenizer = load_target(tmp_path / "first")
    ids = tokenizer(records[0]["prompt"], return_tensors="pt")["input_ids"]
    said = model.generate(ids, max_new_tokens=DISTILL.max_tokens, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == records[0]["answer"]
    still = {"tokens": 1, "learning_rate": 1e-9, "adam_learning_rate": 1e-9, "start": tmp_path / "first"}
    recover(made["target"], made["pruned"], tmp_path / "own", tmp_path / "second", RECOVER.model_copy(update=still))
    for ours, theirs in zip(load_model(tmp_path / "second").parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)


def test_rounds_that_make_no_sense_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    prune(made["target"], tmp_path / "other", PruneSettings(keep=1))
    start = RECOVER.model_copy(update={"start": tmp_path / "other"})
    with pytest.raises(InputError, match=r"keeps layers \[0\], .* keeps \[0, 4\]; give a draft"):
        run(made, tmp_path / "out", start)
    own = DISTILL.model_copy(update={"answerer": made["pruned"], "max_prompts": 4})
    distill(made["target"], made["prompts"], tmp_path / "own", own)
    with pytest.raises(InputError, match="set ce_weight to 0"):
        settings = RECOVER.model_copy(update={"ce_weight": 1.0})
        recover(made["target"], made["pruned"], tmp_path / "own", tmp_path / "out", settings)
    with pytest.raises(ValueError, match="start and from_scratch exclude each other"):
        RecoverSettings(start=tmp_path, from_scratch=True)
    with pytest.raises(ValueError, match="a draft is started here"):
        DistillSettings(answerer=tmp_path, backend="url", url="http://127.0.0.1:9")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_draft_learns_to_propose_several_tokens_in_one_pass(
    made: dict[str, Path], tmp_path: Path, method: str
) -> None:
    settings = RECOVER.model_copy(update={"method": method, "adam_learning_rate": 0.01, "parallel_tokens": 3})
    before = run(made, tmp_path / "before", settings.model_copy(update={"tokens": 1, "warmup_share": 0.9}))
    after = run(made, tmp_path / "after", settings.model_copy(update={"tokens": 12_000}))
    for depth in range(3):
        assert after["parallel_overlap"][depth] > before["parallel_overlap"][depth]  # type: ignore[index]
    config = json.loads((tmp_path / "after" / "config.json").read_text())
    _, tokenizer = load_target(made["target"])
    assert tokenizer.decode([config["pard_token"]]) == "\ufffd"


def test_windows_that_masks_would_see_past_are_refused(tmp_path: Path) -> None:
    sliding = next(case for case in pico.CASES if case.name == "mistral-sliding")
    target = pico.save(sliding.model(), tmp_path / "target")
    prune(target, tmp_path / "pruned", PruneSettings(keep=2))
    with pytest.raises(InputError, match="sliding-window"):
        Trainer(target, tmp_path / "pruned", tmp_path, RECOVER.model_copy(update={"parallel_tokens": 3}))


def test_a_loss_that_is_not_a_number_ends_the_training(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "loss_of", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(InputError, match=r"the loss is not a number after 0 positions; .*lower learning_rate"):
        run(made, tmp_path / "out")
