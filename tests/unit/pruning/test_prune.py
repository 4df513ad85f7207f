"""The stages, from target and text to a checkpoint, on disk."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning import checkpoint
from pruning.measured import load_scores
from pruning.plan import load_plan
from pruning.prune import prune, prune_by_plan, prune_run, score, score_run
from pruning.settings import PruneSettings, ScoreSettings
from pruning.surgery import prune_depth
from stages.errors import InputError
from stages.hashing import checkpoint_hash, tokenizer_hash

from . import pico

FEW = {"calibration_tokens": 96, "greedy_tokens": 64, "sequence_length": 16}


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_first_and_last_needs_no_text(target, tmp_path):
    made = prune(target, tmp_path / "pruned", PruneSettings())
    assert made.kept_layers == (0, pico.LAYERS - 1)
    assert made.target_sha256 == checkpoint_hash(target)
    assert load_plan(tmp_path / "pruned") == made
    assert not (tmp_path / "pruned" / "scores.json").exists()
    assert tokenizer_hash(tmp_path / "pruned") == tokenizer_hash(target)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    expected = prune_depth(checkpoint.load_model(target), made.kept_layers)
    torch.testing.assert_close(plain.state_dict(), expected.state_dict(), atol=0, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "pruned").chat_template == pico.TEMPLATE


@pytest.mark.parametrize("method", ["angular", "block_influence", "greedy_kl"])
def test_scores_then_plan_then_checkpoint(method, target, text, tmp_path):
    scored = score(target, [text], tmp_path / "scores", ScoreSettings(**FEW))
    assert load_scores(tmp_path / "scores") == scored
    made = prune(target, tmp_path / "a", PruneSettings(method=method, keep=2), tmp_path / "scores")
    again = prune(target, tmp_path / "b", PruneSettings(method=method, keep=2, calibration=(text,), **FEW))
    assert made.kept_layers == again.kept_layers
    assert len(made.kept_layers) == 2
    assert made.scores["num_tokens"] == (64 if method == "greedy_kl" else 96)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert load_scores(tmp_path / "a") == scored
    assert getattr(load_scores(tmp_path / "b"), method) is not None


@pytest.mark.parametrize("given", ["plan.json", "."])
def test_a_plan_is_replayed_to_the_same_weights(given, target, tmp_path):
    made = prune(target, tmp_path / "a", PruneSettings(layers=(3, 1)))
    assert made.kept_layers == (1, 3)
    assert prune_by_plan(target, tmp_path / "a" / given, tmp_path / "b") == made
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert checkpoint_hash(tmp_path / "a") == checkpoint_hash(tmp_path / "b")


def test_scores_for_a_method_that_reads_none_are_refused(target, text, tmp_path):
    score(target, [text], tmp_path / "scores", ScoreSettings(scores=("angular",), **FEW))
    with pytest.raises(
        InputError, match="method 'first' reads no scores; give one of angular, block_influence, greedy_kl"
    ):
        prune(target, tmp_path / "out", PruneSettings(method="first"), tmp_path / "scores")


def test_a_plan_or_scores_of_another_target_are_refused(target, text, tmp_path):
    other = pico.save(pico.LLAMA.model(seed=9), tmp_path / "other")
    prune(target, tmp_path / "pruned", PruneSettings())
    with pytest.raises(InputError, match="plan was made for the target"):
        prune_by_plan(other, tmp_path / "pruned", tmp_path / "out")
    score(target, [text], tmp_path / "scores", ScoreSettings(scores=("angular",), **FEW))
    with pytest.raises(InputError, match="scores are of the target"):
        prune(other, tmp_path / "out", PruneSettings(method="angular"), tmp_path / "scores")
    assert not (tmp_path / "out").exists()


def test_what_was_not_scored_cannot_decide(target, text, tmp_path):
    score(target, [text], tmp_path / "scores", ScoreSettings(scores=("angular",), **FEW))
    with pytest.raises(InputError, match=r"no block_influence; score again with scores: \[block_influence\]"):
        prune(target, tmp_path / "out", PruneSettings(method="block_influence"), tmp_path / "scores")
    score(target, [text], tmp_path / "scores", ScoreSettings(scores=("greedy_kl",), keep=3, **FEW))
    with pytest.raises(InputError, match="greedy scores stop at 3 layers"):
        prune(target, tmp_path / "out", PruneSettings(method="greedy_kl", keep=2), tmp_path / "scores")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"remove": 5}, "5 of 5 layers removed leaves 0"),
        ({"remove": 9}, "9 of 5 layers removed leaves -4"),
        ({"keep": 0}, "keep from 1 to 5"),
        ({"keep": 6}, "the target has 5 layers"),
        ({"keep": 9, "method": "angular"}, "the target has 5 layers"),
        ({"layers": (0, 5)}, "layer 5 does not exist"),
        ({"method": "angular"}, "no calibration text given"),
    ],
)
def test_impossible_wishes_leave_no_folder(settings, said, target, tmp_path):
    with pytest.raises(InputError, match=said):
        prune(target, tmp_path / "out", PruneSettings(**settings))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


def test_run_json_tells_whether_a_folder_is_current(target, text, tmp_path):
    settings = PruneSettings(method="angular", keep=3, calibration=(text,), **FEW)
    made = prune(target, tmp_path / "out", settings)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["stage"] == "prune"
    assert record["plan_sha256"] == made.sha256
    assert PruneSettings.model_validate(record["settings"]) == settings
    assert prune_run(target, settings).is_current(tmp_path / "out")
    assert not prune_run(target, settings.model_copy(update={"keep": 2})).is_current(tmp_path / "out")
    text.write_text(text.read_text() + "#")
    assert not prune_run(target, settings).is_current(tmp_path / "out")


def test_scoring_leaves_a_run_json_and_refuses_missing_text(target, text, tmp_path):
    settings = ScoreSettings(scores=("block_influence",), **FEW)
    score(target, [text], tmp_path / "scores", settings)
    assert score_run(target, [text], settings).is_current(tmp_path / "scores")
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        score(target, [tmp_path / "nowhere.txt"], tmp_path / "other", settings)


def test_the_summary_names_what_was_removed_and_why(target, text, tmp_path):
    scored = score(target, [text], tmp_path / "scores", ScoreSettings(**FEW))
    kept = scored.kept("angular", 3)
    span = scored.summary("angular", kept)
    removed = [layer for layer in range(pico.LAYERS) if layer not in kept]
    assert span["span"] == [removed[0], removed[0] + 2]
    assert scored.angular is not None
    assert span["distance"] == scored.angular[removed[0]][removed[0] + 2]
    assert scored.greedy_kl is not None
    assert scored.summary("greedy_kl", scored.kept("greedy_kl", 3))["kl"] == scored.greedy_kl.kl[1]
    assert len(scored.summary("block_influence", scored.kept("block_influence", 3))["influence_removed"]) == 2


def test_a_plan_that_was_edited_and_does_not_fit_is_refused(target, text, tmp_path):
    made = prune(target, tmp_path / "out", PruneSettings(layers=(0, 4), mlp_width=8, calibration=(text,), **FEW))
    assert made.kept_channels is not None
    beyond = tuple((*row[:-1], 48) for row in made.kept_channels)
    for changes, said in (
        ({"num_layers": 9}, "the plan is for 9 layers, the target has 5"),
        ({"kept_channels": beyond}, "keeps channel 48 of an MLP, the target's are 0 to 47"),
    ):
        made.model_copy(update=changes).save(tmp_path / "edited.json")
        with pytest.raises(InputError, match=said):
            prune_by_plan(target, tmp_path / "edited.json", tmp_path / "no")


def test_config_json_is_the_targets_own_but_for_what_was_cut(tmp_path):
    """transformers reads a Mistral with layer_types as a Ministral; what serves the target may know only the former."""
    case = next(case for case in pico.CASES if case.name == "ministral-mixed")
    target = pico.save(case.model(), tmp_path / "target")
    pico.edit_config(target, architectures=["MistralForCausalLM"], model_type="mistral", a_key_of_theirs={"x": 1})
    prune(target, tmp_path / "out", PruneSettings(layers=(0, 4)))
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("target", "out"))
    assert after == {**before, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    assert len(checkpoint.load_model(tmp_path / "out").model.layers) == 2


@pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)
def test_every_family_goes_the_whole_way(case, text, tmp_path):
    target = pico.save(case.model(), tmp_path / "target")
    made = prune(target, tmp_path / "out", PruneSettings(method="angular", keep=3, calibration=(text,), **FEW))
    model, tokenizer = checkpoint.load_target(tmp_path / "out")
    assert len(model.model.layers) == len(made.kept_layers) == 3
    prompt = tokenizer("def f", return_tensors="pt")["input_ids"]
    assert model.generate(prompt, max_new_tokens=4, min_new_tokens=4, pad_token_id=0).shape[1] == prompt.shape[1] + 4
