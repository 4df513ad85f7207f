"""The stage ``understudy prune --method nuteprune``: trains masks, fine-tunes with them, writes the sliced checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pruning import calibration, checkpoint, plan
from pruning.families import family_of
from pruning.nuteprune import export, state, text
from pruning.nuteprune.masks import Masks
from pruning.nuteprune.resident import Side
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.sparsity import TOLERANCE, Units, check_reachable, counts, realised, units_of
from pruning.nuteprune.training import Trainer
from pruning.plan import WidthPlan, load_plan
from pruning.prune import inputs_of
from pruning.shapes import check_uniform, narrow_config
from stages.errors import InputError
from stages.folders import publish, read_json
from stages.progress import log
from stages.provenance import Run, up_to_date

CURVE_POINTS = 300
"""Steps of the curve that run.json keeps."""


def check_applicable(config: Any, settings: NutePruneSettings) -> Units:
    """The target's units.

    Raises:
        InputError: an architecture that masks do not fit, or a sparsity that cannot be reached.
    """
    family = family_of(config)
    check_uniform(config, "method nuteprune")
    if settings.hidden and family.derived_head_dim:
        raise InputError(
            f"hidden: engines take the width of a {family.architecture}'s heads from its hidden size, which cannot shrink "
            "alone; leave hidden out"
        )
    units = units_of(config, settings.hidden)
    check_reachable(settings.sparsity, units, settings.export, settings.multiple_of, settings.hidden)
    return units


def nuteprune_run(target: Path, settings: NutePruneSettings) -> Run:
    """The identity of the stage, to ask whether a finished folder is current."""
    inputs = inputs_of(target, settings.calibration)
    return Run("prune", settings.model_dump(mode="json"), inputs, settings.seed, state.HARMLESS)


def plan_of(masks: Masks, units: Units, config: Any, run: Run, settings: NutePruneSettings) -> WidthPlan:
    """What the final masks keep, as a plan."""
    groups, neurons, hidden = counts(masks)
    kept_hidden = None if masks.hidden is None else export.kept(masks.hidden)
    return WidthPlan(
        target_sha256=run.identity["inputs"]["target"],
        architecture=family_of(config).architecture,
        num_layers=units.num_layers,
        method="nuteprune",
        criterion=f"masks taught by {settings.teachers}",
        export=settings.export,
        sparsity=settings.sparsity,
        realised_sparsity=realised(groups, neurons, units.hidden if hidden is None else hidden, units),
        num_channels=units.neurons,
        num_groups=units.groups,
        kept_channels=export.kept_rows(masks.neurons),
        kept_groups=export.kept_rows(masks.groups),
        scores={} if kept_hidden is None else {"kept_hidden": kept_hidden},
    )


def _write(trainer: Trainer, side: Side, made: WidthPlan, target: Path, folder: Path) -> None:
    """Slices the student and writes it, in the type the target is stored in."""
    assert side.masks is not None
    model = export.sliced(trainer.resident, side, made).to(checkpoint.stored_dtype(target))
    values = read_json(target / "config.json", "copy the checkpoint again")
    config = narrow_config(export.config_values(values, side.masks), made)
    checkpoint.write_checkpoint(model, target, folder, config)
    made.save(folder / plan.FILE)


def _figures(trainer: Trainer, made: WidthPlan) -> dict[str, Any]:
    """What run.json says about the training."""
    found, position = trainer.state, trainer.state.position
    thinned = found.curve[:: max(1, len(found.curve) // CURVE_POINTS)]
    sizes = {"realised_sparsity": made.realised_sparsity, "num_snapshots": len(found.snapshots)}
    taken = {"steps": position.step, "tokens": position.tokens, "train_s": round(position.seconds, 1)}
    return {"figures": {**found.figures, **sizes, **taken}, "curve": thinned}


def prune_masks(target: Path, out: Path, settings: NutePruneSettings) -> WidthPlan:
    """Stage: NutePrune from a target and text to a smaller checkpoint.

    An interrupted run resumes from its last checkpoint when it is started again with the same settings.

    Returns:
        the plan, also written as plan.json. The weights are trained: the plan alone does not give them again.

    Raises:
        InputError: target, text or settings that do not do; other settings than those of the interrupted run; a loss that
            is not a number. StorageError: ``out`` cannot be written.
    """
    config = checkpoint.load_config(target)
    units = check_applicable(config, settings)
    if settings.dtype == "auto" and checkpoint.stored_dtype(target) == torch.float16:
        raise InputError(
            f"dtype: auto is float16 for {target}, in which gradients of small differences are 0; give float32 or bfloat16"
        )
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    run = nuteprune_run(target, settings)
    if up_to_date(run, out):
        made = load_plan(out)
        assert isinstance(made, WidthPlan)
        return made
    found = text.windows(samples, checkpoint.load_tokenizer(target), settings.sequence_length)
    training, kept_out = text.split(found, settings.check_share, settings.batch_tokens)
    check = list(text.epoch(kept_out, settings.batch_tokens, settings.seed, 0))
    with publish(out, keep_partial=True, stage=run.stage) as folder:
        model = checkpoint.load_model(target, settings.dtype, settings.device)
        trainer = Trainer(model, units, settings, folder, run.identity)
        side = trainer.train(training, [batch.to(model.device) for batch in check])
        trainer.check("final", [batch.to(model.device) for batch in check])
        assert side.masks is not None
        made = plan_of(side.masks, units, config, run, settings)
        _write(trainer, side, made, target, folder)
        run.write(folder, plan_sha256=made.sha256, **_figures(trainer, made))
        (folder / state.FILE).unlink(missing_ok=True)
    if settings.exact and abs(made.realised_sparsity - settings.sparsity) > TOLERANCE:
        log(
            f"{out}: {settings.sparsity:g} was asked for, {made.realised_sparsity:.3f} is what the masks' heads leave room for"
        )
    log(f"{out}: {_summary(trainer.state.figures, made)}")
    return made


def _summary(figures: dict[str, Any], made: WidthPlan) -> str:
    """One line of results."""
    said = f"{made.realised_sparsity:.1%} of the layers' weights removed"
    if final := figures.get("final"):
        said += f"; on text kept out: KL {final['kl']:.3f} nats/token, argmax agreement {final['agreement']:.3f}"
    return said
