"""Recovery: training of the pruned model on the target's own answers, so that it speaks like the target again."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from drafts.distilling import DATA, read_answers, read_data
from drafts.examples import Example, batches, split_examples
from drafts.losses import agreement, overlap
from drafts.packaging import package
from drafts.parallel import CONFIG_KEY, with_masks
from drafts.processes import launch, published, refuse_too_many, world
from drafts.teacher import Teacher
from drafts.trained_on import TrainedOn, read_trained_on, trained_on, write_trained_on
from drafts.training import CHECKPOINT, RecoverSettings, Student, Trainer
from pruning.checkpoint import write_checkpoint
from pruning.plan import load_plan
from stages.errors import InputError
from stages.folders import check_place, partial_of, read_json
from stages.hashing import checkpoint_hash, file_hash
from stages.progress import log
from stages.provenance import Run, can_resume, up_to_date

HARMLESS = ("checkpoint_every_s", "teacher_cache_gib")
"""Settings that may change between an interruption and its resumption."""


def _run(target: Path, pruned: Path, data: Path, settings: RecoverSettings) -> Run:
    """What a recovery is made of.

    Raises:
        InputError: the plan of the pruned model was made for another target, or the data by another target.
    """
    if settings.ce_weight == 0 and not settings.judges_by_logits:
        raise InputError(
            "recover: kl_weight, ce_weight, reverse_kl_weight and overlap_weight are all 0; give one a positive weight"
        )
    plan = load_plan(pruned)
    target_hash = checkpoint_hash(target)
    plan.check_target(target_hash, str(pruned / "plan.json"))
    records = read_answers(data, target_hash)
    if settings.ce_weight > 0 and any("answerer_sha256" in record for record in records):
        raise InputError(f"{data / DATA}: a draft's own answers teach nothing as labels; set ce_weight to 0")
    inputs = {"target": target_hash, "pruned": checkpoint_hash(pruned), "data": file_hash(data / DATA)}
    if settings.start:
        before = load_plan(settings.start)
        before.check_target(target_hash, str(settings.start))
        advice = "give a draft that was recovered from this pruned model"
        before.check_same_parts(plan, f"start {settings.start}", str(pruned), advice)
        inputs["start"] = checkpoint_hash(settings.start)
    return Run("recover", settings.model_dump(mode="json"), inputs, settings.seed, HARMLESS)


def recover(target: Path, pruned: Path, data: Path, out: Path, settings: RecoverSettings, processes: int = 1) -> None:
    """Trains the pruned model on the target's answers and writes the draft's checkpoint to ``out``.

    Args:
        processes: how many train it side by side, each on a GPU of its own where there are some.

    Raises:
        InputError: the plan of the pruned model was made for another target, or the data by another target.
    """
    refuse_too_many(processes)
    run = _run(target, pruned, data, settings)
    if up_to_date(run, out):
        return
    if processes > 1:
        check_place(out, run.stage)
        launch(processes, run.stage, (target, pruned, data), out, settings)
        return
    first = world().is_main_process
    with published(out, partial_of(out.resolve()), run.stage) as folder:
        if first:
            if not can_resume(run, folder):
                (folder / CHECKPOINT).unlink(missing_ok=True)
            run.write(folder)
        world().wait_for_everyone()
        trainer = Trainer(target, pruned, folder, settings)
        records = read_data(data / DATA)
        training, kept_out = split_examples(records, trainer.tokenizer, settings.max_length, settings.check_share)
        trainer.restore()
        trainer.train(training)
        if not first:
            return
        figures = _checked(trainer, kept_out)
        config = read_json(pruned / "config.json", "run 'understudy prune' again")
        if trainer.mask_token is not None:
            config[CONFIG_KEY] = trainer.mask_token
        write_checkpoint(trainer.finished().to(trainer.stored_dtype), target, folder, config)
        shutil.copy2(pruned / "plan.json", folder / "plan.json")
        curve = trainer.losses[:: max(1, len(trainer.losses) // 200)]
        run.write(
            folder, figures=figures, position=asdict(trainer.position), losses=curve, processes=world().num_processes
        )
        before = read_trained_on(settings.start) if settings.start else TrainedOn()
        if before is not None:  # of a start that has no list, half a list would say too little
            write_trained_on(folder, before | trained_on(records))
        package(target, folder, data)
    (out / CHECKPOINT).unlink()
    log(
        f"{out}: overlap {figures.get('overlap', float('nan')):.3f}, agreement {figures.get('agreement', float('nan')):.3f}"
    )


def _checked(trainer: Trainer, kept_out: list[Example]) -> dict[str, Any]:
    """Overlap and agreement with the target on answers that were kept out of training."""
    student, teacher = trainer.accelerator.unwrap_model(trainer.student), Teacher(trainer.teacher_model, 0)
    with trainer.accelerator.autocast():
        figures: dict[str, Any] = check(student, teacher, kept_out, trainer.settings)
        if trainer.mask_token is not None and kept_out:
            shares = check_parallel(student, teacher, kept_out, trainer.settings, trainer.mask_token)
            figures["parallel_overlap"] = shares
    return figures


@torch.no_grad()
def check(
    student: Student, teacher: Teacher, examples: Sequence[Example], settings: RecoverSettings
) -> dict[str, float]:
    """Overlap sum min(p, q) and argmax agreement with the target on answers that were not trained on."""
    if not examples:
        return {}
    device = next(student.parameters()).device
    sums, count = [0.0, 0.0], 0
    for batch in batches(examples, settings.batch_tokens, 0.0, settings.seed, 0):
        moved = batch.to(device)
        student_NV, teacher_NV = student(moved), teacher.logits(moved)
        sums[0] += overlap(student_NV, teacher_NV).sum().item()
        sums[1] += agreement(student_NV, teacher_NV).sum().item()
        count += batch.num_tokens
    return {"overlap": sums[0] / count, "agreement": sums[1] / count, "check_tokens": float(count)}


@torch.no_grad()
def check_parallel(
    student: Student, teacher: Teacher, examples: Sequence[Example], settings: RecoverSettings, token: int
) -> list[float]:
    """Overlap with the target of the 1st, 2nd, … token that one pass proposes, on answers that were not trained on."""
    device = next(student.parameters()).device
    sums, counts = torch.zeros(settings.parallel_tokens), torch.zeros(settings.parallel_tokens)
    size = max(64, settings.batch_tokens // settings.parallel_tokens)
    for batch in batches(examples, size, 0.0, settings.seed, 0):
        moved = with_masks(batch, settings.parallel_tokens, 1.0, token, random.Random(0)).to(device)
        found = overlap(student(moved), teacher.logits(moved)).cpu()
        sums.index_add_(0, moved.depths_P.cpu(), found)
        counts += torch.bincount(moved.depths_P.cpu(), minlength=len(counts))
    return (sums / counts.clamp_min(1)).tolist()
