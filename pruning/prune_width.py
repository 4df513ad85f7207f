"""The stage that narrows FFNs: statistics of one pass -> a score for every channel -> widths -> plan -> checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning import allocation, calibration, checkpoint, criteria, shapes, statistics
from pruning.export import write_width
from pruning.families import family_of
from pruning.plan import WidthPlan
from pruning.prune import inputs_of
from pruning.settings import WidthSettings
from pruning.statistics import Statistics
from stages.errors import InputError
from stages.folders import check_place
from stages.progress import progress
from stages.provenance import Run


def width_run(target: Path, settings: WidthSettings) -> Run:
    """The identity of this ``prune``, to ask whether a finished folder is current."""
    inputs = inputs_of(target, settings.calibration)
    return Run("prune", settings.model_dump(mode="json"), inputs, settings.seed)


def check(config: Any, settings: WidthSettings) -> None:
    """Refuses what needs no text to be found out.

    Raises:
        InputError: a target of ragged layers, or without the biases that the method needs; a sparsity out of reach.
    """
    family = family_of(config)
    shapes.check_uniform(config, f"method {settings.method!r}")
    if _compensates(settings) and not isinstance(family.mlp_bias, str):
        raise InputError(
            f"method 'flap' adds a bias to down_proj, which {family.architecture} does not have; "
            "set bias_compensation=false to do without"
        )
    layers, width = config.num_hidden_layers, config.intermediate_size
    even = [1 - settings.sparsity] * layers
    _widths(even, width, settings)


def _compensates(settings: WidthSettings) -> bool:
    return settings.method == "flap" and settings.bias_compensation


def _widths(densities: Sequence[float], width: int, settings: WidthSettings) -> list[int]:
    """Widths of the layers as the export wants them."""
    rounding = (settings.sparsity, settings.round_to, settings.tolerance)
    if settings.exported_as == "uniform":
        return allocation.uniform_widths(len(densities), width, *rounding)
    return allocation.ragged_widths(densities, width, *rounding)


def _densities(scores: Sequence[torch.Tensor], importance: Sequence[float], settings: WidthSettings) -> list[float]:
    """The share of each layer that stays, by the allocation that is asked for."""
    if settings.allocated_by == "coarse":
        return allocation.densities(importance, settings.sparsity)
    if settings.allocated_by == "standardised":
        return allocation.standardised([row.tolist() for row in scores], settings.sparsity)
    return [1 - settings.sparsity] * len(scores)


def score_channels(model: PreTrainedModel, found: Statistics, criterion: str) -> list[torch.Tensor]:
    """One score [F] per layer.

    Raises:
        InputError: a score that is NaN or infinite, naming the layer.
    """
    rows = []
    for index, layer in enumerate(family_of(model.config).layers_of(model)):
        row = criteria.CRITERIA[criterion](criteria.channels_of(layer, found, index))
        if not torch.isfinite(row).all():
            raise InputError(
                f"layer {index}: NaN or infinity in the scores by {criterion!r}; check the target's weights"
            )
        rows.append(row)
    return rows


def make_plan(
    model: PreTrainedModel, found: Statistics, settings: WidthSettings, target_sha256: str, **scores: Any
) -> WidthPlan:
    """Decides which channels stay.

    Args:
        model: the target.
        found: its statistics on calibration text.
        settings: method, sparsity, rounding, export.
        target_sha256: of the target's folder.
        scores: further numbers for the plan.

    Raises:
        InputError: a sparsity that the rounding cannot reach; NaN in scores.
    """
    rows = score_channels(model, found, settings.ranked_by)
    importance = allocation.importance(found.distances.tolist(), settings.alpha)
    widths = _widths(_densities(rows, importance, settings), len(rows[0]), settings)
    kept = criteria.strongest(rows, widths)
    biases = None
    if _compensates(settings):
        layers = family_of(model.config).layers_of(model)
        downs = [layer.mlp.down_proj.weight.detach().cpu() for layer in layers]
        parts = zip(found.means, downs, kept, strict=True)
        biases = tuple(tuple(criteria.down_bias(means, down, row)) for means, down, row in parts)
    return WidthPlan(
        target_sha256=target_sha256,
        architecture=family_of(model.config).architecture,
        num_layers=len(rows),
        method=settings.method,
        criterion=settings.ranked_by,
        export=settings.exported_as,
        sparsity=settings.sparsity,
        realised_sparsity=1 - sum(widths) / (len(rows) * len(rows[0])),
        num_channels=len(rows[0]),
        kept_channels=kept,
        importance=tuple(importance),
        down_bias=biases,
        scores={"num_tokens": found.num_tokens, "distances": found.distances.tolist(), **scores},
    )


def prune_width(target: Path, out: Path, settings: WidthSettings) -> WidthPlan:
    """Stage: decides which channels of the FFNs stay and writes the narrowed checkpoint.

    Args:
        target: a Hugging Face checkpoint of a known family.
        out: the folder to write; replaced whole, or left as it was.
        settings: method, sparsity, rounding, export.

    Returns:
        the plan, also written as plan.json.

    Raises:
        InputError: target, text or settings that do not do; StorageError: ``out`` cannot be written.
    """
    check(checkpoint.load_config(target), settings)
    run = width_run(target, settings)
    check_place(out, run.stage)
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    text = calibration.take(samples, checkpoint.load_tokenizer(target), settings.calibration_tokens, settings)
    model = checkpoint.load_model(target, settings.dtype, settings.device)
    stored = model.dtype
    if settings.dtype == "auto":
        model = checkpoint.quickly_computed(model)
    with progress("scoring channels", text.num_tokens, "tokens") as advance:
        found = statistics.measure(model, text.batches, advance)
    sha256 = run.identity["inputs"]["target"]
    made = make_plan(model, found, settings, sha256, calibration_sha256=text.sha256)
    write_width(target, made, run, out, model if settings.dtype == "auto" and model.dtype == stored else None)
    return made
