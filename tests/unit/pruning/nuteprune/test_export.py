"""Masked, sliced and reloaded models give the same logits."""

from pathlib import Path

import pytest
import torch

from pruning import checkpoint
from pruning.nuteprune import export
from pruning.nuteprune.resident import Resident
from pruning.shapes import narrow_config
from stages.folders import read_json

from .. import pico
from . import versions
from .versions import logits


@pytest.mark.parametrize(
    ("name", "kind", "hidden"),
    [(name, "ragged", hidden) for name in versions.NAMES for hidden in (False, True)]
    + [("llama-tied", "uniform", True), ("qwen3-untied", "uniform", False)],
)
def test_masked_equals_sliced_equals_reloaded(name, kind, hidden, tmp_path: Path):
    model = versions.CASES[name].model()
    target = pico.save(model, tmp_path / "target")
    resident = Resident(model, scale=2.0)
    version = versions.side(resident, hidden, kind)
    assert version.masks is not None
    made = versions.plan(resident, version, kind)
    with resident.wearing(version):
        expected = logits(model)
    sliced = export.sliced(resident, version, made)
    assert sum(p.numel() for p in sliced.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(logits(sliced), expected, atol=1e-4, rtol=0)
    config = narrow_config(export.config_values(read_json(target / "config.json", ""), version.masks), made)
    checkpoint.save_checkpoint(sliced, target, tmp_path / "out", config)
    reloaded = checkpoint.load_model(tmp_path / "out")
    torch.testing.assert_close(logits(reloaded), logits(sliced), atol=1e-6, rtol=0)
    kept = 32 if version.masks.hidden is None else int((version.masks.hidden > 0).sum())
    assert reloaded.config.hidden_size == kept
    assert hidden == (kept < 32)


def test_without_the_norms_correction_a_smaller_residual_stream_is_another_model(monkeypatch):
    """The test above could not fail otherwise: the correction is what makes it hold."""
    model = pico.LLAMA.model()
    resident = Resident(model, scale=2.0)
    version = versions.side(resident, hidden=True)
    made = versions.plan(resident, version)
    with resident.wearing(version):
        expected = logits(model)
    monkeypatch.setattr(export, "_scaled", lambda name, tensor, share, family: tensor)
    assert not torch.allclose(logits(export.sliced(resident, version, made)), expected, atol=1e-2)
