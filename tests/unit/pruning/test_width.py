"""Narrower MLPs: every family gives what the same model with its other channels silenced gives."""

from pathlib import Path

import pytest
import torch

from pruning import checkpoint
from pruning.calibration import Batch, pad
from pruning.plan import DepthPlan, load_plan
from pruning.prune import prune, prune_by_plan
from pruning.settings import PruneSettings
from pruning.width import channel_scores, narrow, strongest
from stages.errors import InputError

from . import pico


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.ids(), use_cache=False).logits


@pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)
def test_a_narrow_model_is_the_model_with_its_other_channels_silenced(case):
    model = case.model()
    generator = torch.Generator().manual_seed(3)
    kept = tuple(tuple(sorted(torch.randperm(48, generator=generator)[:20].tolist())) for _ in range(pico.LAYERS))
    found = logits(narrow(model, kept))
    with torch.no_grad():
        for layer, channels in zip(model.model.layers, kept, strict=True):
            silenced = torch.ones(48, dtype=torch.bool)
            silenced[list(channels)] = False
            layer.mlp.down_proj.weight[:, silenced] = 0
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=0)


def test_scores_are_what_channels_add_and_padding_adds_nothing():
    model = pico.LLAMA.model()
    ids = pico.ids(2, 9).tolist()
    short = [ids[0], ids[1][:4]]
    together = channel_scores(model, [pad(short)], (1, 3))
    apart = [channel_scores(model, [pad([row])], (1, 3)) for row in short]
    torch.testing.assert_close(together, (9 * apart[0] + 4 * apart[1]) / 13)
    seen = {}
    model.model.layers[3].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids[0]]), use_cache=False)
    column = model.model.layers[3].mlp.down_proj.weight[:, 7].detach().double().norm()
    assert float(apart[0][1, 7]) == pytest.approx(float(seen["x"][0, :, 7].double().abs().mean() * column))


def test_the_strongest_channels_stay_and_ties_go_to_the_first():
    assert strongest(torch.tensor([[0.1, 0.9, 0.9, 0.5], [1.0, 1.0, 1.0, 0.0]]), 2) == ((1, 2), (0, 1))


def test_a_stage_with_a_width_can_be_replayed(tmp_path: Path):
    target = pico.save(pico.LLAMA.model(), tmp_path / "target")
    text = tmp_path / "text.txt"
    text.write_text("how narrow can it be?\n" * 400)
    settings = PruneSettings(
        method="explicit", layers=(0, 3), mlp_width=16, calibration=(text,), calibration_tokens=200
    )
    made = prune(target, tmp_path / "out", settings)
    assert made.kept_channels is not None
    assert [len(row) for row in made.kept_channels] == [16, 16]
    model = checkpoint.load_model(tmp_path / "out")
    assert model.config.intermediate_size == 16
    prune_by_plan(target, tmp_path / "out", tmp_path / "again")
    for name, tensor in checkpoint.load_model(tmp_path / "again").state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], atol=0, rtol=0)
    assert load_plan(tmp_path / "out") == made


def test_what_cannot_be(tmp_path: Path):
    target = pico.save(pico.LLAMA.model(), tmp_path / "target")
    with pytest.raises(InputError, match=r"mlp_width must be from 1 to 47 .*, given 48"):
        prune(target, tmp_path / "out", PruneSettings(keep=1, mlp_width=48))
    with pytest.raises(InputError, match="no calibration text given"):
        prune(target, tmp_path / "out", PruneSettings(keep=1, mlp_width=8))
    plan = {"target_sha256": "x", "architecture": "LlamaForCausalLM", "num_layers": 5, "method": "first"}
    for channels in ([[0, 1]], [[0, 1], [2]], [[1, 0], [0, 1]], [[], []]):
        with pytest.raises(ValueError, match="kept_channels must be ascending"):
            DepthPlan(**plan, kept_layers=(0, 1), kept_channels=channels)


def test_batches_of_nothing_score_nothing():
    assert float(channel_scores(pico.LLAMA.model(), list[Batch](), (0,)).sum()) == 0


def test_a_channel_that_is_not_a_number_is_refused_with_its_layer():
    model = pico.LLAMA.model()
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight[0, 7] = float("nan")
    with pytest.raises(InputError, match="layer 3: NaN or infinity in the scores of its channels"):
        channel_scores(model, [pad(pico.ids(2, 9).tolist())], (1, 3))
