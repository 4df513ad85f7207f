"""Versions of pico models: masks and low-rank matrices drawn at random, to be worn, folded and sliced."""

from __future__ import annotations

import torch

from pruning.nuteprune.masks import Masks
from pruning.nuteprune.resident import PARTS, Resident, Side, parameters_of
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.sparsity import final_masks, units_of
from pruning.nuteprune.stage import plan_of
from pruning.plan import WidthPlan
from stages.provenance import Run
from tests.unit.pruning import pico

NAMES = ("llama-tied", "llama-untied", "llama-biases", "qwen3-tied", "qwen3-untied")
"""Llama and Qwen3 with grouped queries, with tied and untied embeddings, with biases."""
CASES = {case.name: case for case in pico.CASES}


def masks(config: object, hidden: bool = False, export: str = "ragged", seed: int = 0) -> Masks:
    """Final masks of random log-alphas: soft values, and zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    units = units_of(config, hidden)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 2 - 0.5

    log_alphas = Masks(draw(units.num_layers, units.groups), draw(units.num_layers, units.neurons))
    if hidden:
        log_alphas.hidden = draw(units.hidden) + 1
    return final_masks(log_alphas, units, None, export, 1)  # type: ignore[arg-type]


def side(resident: Resident, hidden: bool = False, export: str = "ragged", seed: int = 0) -> Side:
    """A version with masks, and with matrices on every part that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    lora = resident.new_lora(PARTS, 4, generator)
    with torch.no_grad():
        for matrix in parameters_of(lora):
            matrix.copy_(torch.randn(matrix.shape, generator=generator) * 0.1)
    return Side(masks(resident.model.config, hidden, export, seed), lora)


def plan(resident: Resident, version: Side, export: str = "ragged") -> WidthPlan:
    """What the version's masks keep."""
    assert version.masks is not None
    config = resident.model.config
    settings = NutePruneSettings(export=export)  # type: ignore[arg-type]
    run = Run("prune", {}, {"target": "0" * 64})
    return plan_of(version.masks, units_of(config), config, run, settings)


@torch.no_grad()
def logits(model: object) -> torch.Tensor:
    """Logits of a few random tokens."""
    return model(input_ids=pico.ids(), use_cache=False).logits  # type: ignore[operator]
