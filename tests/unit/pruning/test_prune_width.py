"""The stage that narrows FFNs, on disk: methods, exports, replay, refusals."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from pruning import checkpoint, statistics
from pruning.allocation import importance
from pruning.calibration import pad
from pruning.plan import WidthPlan, load_plan
from pruning.prune import prune_by_plan
from pruning.prune_width import make_plan, prune_width, width_run
from pruning.settings import PruneSettings, WidthSettings, read_prune_settings
from pruning.statistics import measure
from stages.errors import InputError

from . import pico

FEW = {"calibration_tokens": 200, "sequence_length": 64, "round_to": 4, "sparsity": 0.5}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.ids(), use_cache=False).logits


@pytest.mark.parametrize("method", ["cfsp", "magnitude", "wanda_sp"])
@pytest.mark.parametrize("export", ["uniform", "ragged"])
def test_every_method_goes_the_whole_way(method, export, target: Path, text: Path, tmp_path: Path):
    settings = WidthSettings(method=method, export=export, calibration=(text,), **FEW)
    made = prune_width(target, tmp_path / "a", settings)
    assert load_plan(tmp_path / "a") == made
    assert sum(made.widths) == pico.LAYERS * 24
    assert made.realised_sparsity == 0.5
    assert (set(made.widths) == {24}) == (export == "uniform" or method != "cfsp")
    assert prune_by_plan(target, tmp_path / "a", tmp_path / "b") == made
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert width_run(target, settings).is_current(tmp_path / "a")
    if export == "uniform":
        assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "a")).__name__ == "LlamaForCausalLM"
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (target, tmp_path / "a"))
    assert {key for key in before if before[key] != after[key]} <= {"intermediate_size", "architectures", "model_type"}


@pytest.mark.parametrize(
    ("chosen", "export"),
    [
        ({}, "ragged"),
        ({"method": "flap", "bias_compensation": False}, "ragged"),
        ({"method": "magnitude"}, "uniform"),
        ({"method": "wanda_sp", "allocation": "coarse"}, "ragged"),
        ({"allocation": "uniform"}, "uniform"),
        ({"alpha": 0}, "uniform"),
        ({"export": "uniform"}, "uniform"),
    ],
)
def test_a_model_is_ragged_where_the_allocation_gives_layers_widths_of_their_own(
    chosen, export, target, text, tmp_path
):
    settings = WidthSettings(calibration=(text,), **FEW, **chosen)
    assert prune_width(target, tmp_path / "out", settings).export == settings.exported_as == export


@pytest.mark.parametrize("export", ["uniform", "ragged"])
@pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)
def test_every_family_gives_what_it_gives_with_those_channels_silenced(case, export, text: Path, tmp_path: Path):
    target = pico.save(case.model(), tmp_path / "target")
    settings = WidthSettings(export=export, alpha=30, calibration=(text,), **FEW)
    made = prune_width(target, tmp_path / "out", settings)
    assert (len(set(made.widths)) == 1) == (export == "uniform")
    masked = checkpoint.load_model(target)
    with torch.no_grad():
        for layer, kept in zip(masked.model.layers, made.kept_channels, strict=True):
            layer.mlp.down_proj.weight[:, [i for i in range(48) if i not in kept]] = 0
    reloaded = checkpoint.load_model(tmp_path / "out")
    assert [layer.mlp.gate_proj.out_features for layer in reloaded.model.layers] == list(made.widths)
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) == masked.config.tie_word_embeddings
    torch.testing.assert_close(logits(reloaded), logits(masked), atol=1e-4, rtol=0)


def test_importance_stands_in_the_plan_and_a_more_important_layer_keeps_more(target, text, tmp_path):
    settings = WidthSettings(export="ragged", alpha=30, calibration=(text,), **FEW)
    made = prune_width(target, tmp_path / "a", settings)
    assert made.importance is not None
    ranked = sorted(range(pico.LAYERS), key=lambda layer: made.importance[layer])
    assert [made.widths[layer] for layer in ranked] == sorted(made.widths)
    assert made.widths[ranked[-1]] > made.widths[ranked[0]]
    assert made.scores["num_tokens"] == 200


def test_the_kept_channels_are_the_strongest_of_their_layer():
    model = pico.LLAMA.model()
    found = measure(model, [pad(pico.ids().tolist())])
    made = make_plan(model, found, WidthSettings(**FEW), "any")
    assert sum(made.widths) == pico.LAYERS * 24
    for layer, row in enumerate(made.kept_channels):
        order = found.activations[layer].argsort(descending=True)
        assert set(row) == set(order[: len(row)].tolist())
    assert (
        make_plan(model, found, WidthSettings(allocation="coarse", method="flap", **FEW), "any").down_bias is not None
    )


def test_flap_keeps_the_mean_output_of_what_it_removes(target, text, tmp_path):
    made = prune_width(
        target, tmp_path / "a", WidthSettings(method="flap", export="uniform", calibration=(text,), **FEW)
    )
    model, plain = checkpoint.load_model(target), AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert plain.config.mlp_bias
    assert made.down_bias is not None
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            removed = [i for i in range(48) if i not in made.kept_channels[index]]
            layer.mlp.down_proj.weight[:, removed] = 0
            bias = torch.tensor(made.down_bias[index])
            layer.mlp.down_proj.register_forward_hook(lambda _, __, output, bias=bias: output + bias)
    torch.testing.assert_close(logits(plain), logits(model), atol=1e-4, rtol=0)


def test_flap_without_biases_is_refused_by_name(text, tmp_path):
    target = pico.save(pico.CASES[-1].model(), tmp_path / "target")
    settings = {"method": "flap", "calibration": (text,), **FEW}
    with pytest.raises(InputError, match="Qwen3ForCausalLM does not have; set bias_compensation=false"):
        prune_width(target, tmp_path / "out", WidthSettings(**settings))
    made = prune_width(target, tmp_path / "out", WidthSettings(**settings, bias_compensation=False))
    assert made.down_bias is None


def test_impossible_wishes_leave_no_folder(target, text, tmp_path):
    def refused(said: str, folder: Path = target, **changes) -> None:
        with pytest.raises(InputError, match=said):
            prune_width(folder, tmp_path / "out", WidthSettings(**{"calibration": (text,), **FEW, **changes}))
        assert not (tmp_path / "out").exists()

    refused(r"sparsity 0.3 cannot be reached .* the nearest is 0\.3333", sparsity=0.3, export="uniform")
    refused(r"has \d+ tokens .*, 100000 are needed", calibration_tokens=100000)
    refused("no calibration text given", calibration=())
    made = prune_width(target, tmp_path / "ragged", WidthSettings(export="ragged", calibration=(text,), **FEW))
    assert isinstance(made, WidthPlan)
    refused("method 'cfsp' needs a model whose layers have one shape", folder=tmp_path / "ragged")
    broken = pico.LLAMA.model()
    with torch.no_grad():
        broken.model.layers[2].mlp.gate_proj.weight[1, 1] = float("inf")
    refused("layer 2: NaN or infinity", folder=pico.save(broken, tmp_path / "broken"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "cfsp", "sparsity": 1}, "'sparsity': .*less than 1, given 1"),
        ({"method": "cfsp", "sparsity": 0}, "'sparsity': .*greater than 0, given 0"),
        ({"method": "flap", "criterion": "paper"}, "criterion 'paper' is one of cfsp's"),
        ({"method": "cfsq"}, "method 'cfsq' is unknown; one of depth, angular, .*cfsp, magnitude, wanda_sp, flap"),
        ({"method": "cfsp", "keep": 2}, "unknown key 'keep'"),
        ({"method": "depth", "sparsity": 0.2}, "unknown key 'sparsity'"),
    ],
)
def test_settings_follow_the_method(values, said):
    with pytest.raises(InputError, match=said):
        read_prune_settings(values, "--set")


def test_depth_is_what_prune_does_by_default():
    assert read_prune_settings({"method": "depth"}, "") == read_prune_settings({}, "") == PruneSettings()
    assert read_prune_settings({"method": "angular", "keep": 3}, "") == PruneSettings(method="angular", keep=3)
    settings = read_prune_settings({"method": "cfsp", "criterion": "paper"}, "")
    assert isinstance(settings, WidthSettings)
    assert (settings.ranked_by, settings.allocated_by) == ("paper", "coarse")
    assert WidthSettings.model_validate_json(settings.model_dump_json()) == settings


def test_depth_with_calibration_text_is_the_published_way(tmp_path):
    values = {"method": "depth", "calibration": [str(tmp_path / "text.txt")]}
    scored = [read_prune_settings({"method": "depth"}, "", scored=True), read_prune_settings({}, "", scored=True)]
    for read in (read_prune_settings(values, ""), *scored):
        assert isinstance(read, PruneSettings)
        assert read.method == "angular"
    named = read_prune_settings({"method": "greedy_kl", "keep": 3}, "", scored=True)
    assert named == PruneSettings(method="greedy_kl", keep=3)


def test_a_target_is_scored_in_a_type_that_the_processor_is_quick_at_and_written_in_its_own(
    text, tmp_path, monkeypatch
):
    target = pico.save(pico.LLAMA.model().bfloat16(), tmp_path / "target")
    monkeypatch.setattr(checkpoint, "multiplies_bfloat16", lambda: False)
    scored = []
    real = statistics.measure
    monkeypatch.setattr(statistics, "measure", lambda model, *given: scored.append(model.dtype) or real(model, *given))
    prune_width(target, tmp_path / "out", WidthSettings(calibration=(text,), **FEW))
    assert scored == [torch.float32]
    assert checkpoint.load_model(tmp_path / "out").dtype == torch.bfloat16


def test_shares_for_layers_that_are_to_be_equal_are_refused():
    with pytest.raises(
        ValidationError, match="allocation 'coarse' gives layers widths of their own; it needs export 'ragged'"
    ):
        WidthSettings(allocation="coarse", export="uniform")


def test_a_very_steep_allocation_is_no_error():
    assert importance([0.0, 1.0], 1e6) == [0.0, 1.0]
