"""The stage: evaluates a model and writes the harness's results, with intervals and, beside a target's, retention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from evaluation import harness
from evaluation.scores import NO_SCORE, Retention, TaskScore, mean_score, retention, scored
from evaluation.settings import PERPLEXITY, EvaluateSettings
from pruning import plan
from pruning.checkpoint import load_target, stored_dtype
from stages import provenance
from stages.errors import InputError
from stages.folders import check_parent, read_json, write_text
from stages.hashing import checkpoint_hash
from stages.settings import Settings, validate

OURS = "understudy"
"""Where our part stands in the harness's JSON."""


class Evaluation(Settings):
    """Our part of a result.

    Attributes:
        model_sha256: ``stages.hashing.checkpoint_hash`` of the model.
        target_sha256: likewise, of the model that ``retention`` is over.
    """

    model_sha256: str
    settings: dict[str, Any]
    tasks: tuple[TaskScore, ...]
    mean_score: float | None
    target_sha256: str | None = None
    retention: Retention | None = None
    run: dict[str, Any] = Field(default_factory=dict)

    def task(self, name: str) -> TaskScore:
        """The score of one task."""
        return next(score for score in self.tasks if score.task in (name, f"{OURS}_{name}"))


def read_evaluation(path: Path) -> Evaluation:
    """Our part of a result that ``evaluate`` wrote; InputError for a file that has none."""
    found = read_json(path, "give a file that 'understudy evaluate' wrote")
    if not isinstance(found, dict) or OURS not in found:
        raise InputError(f"{path}: holds no result of 'understudy evaluate'; evaluate the target with --out first")
    return validate(Evaluation, found[OURS], str(path))


def _with_dtype(settings: EvaluateSettings, model_folder: Path) -> EvaluateSettings:
    """The settings with the type behind ``auto``; see there."""
    if settings.dtype != "auto":
        return settings
    on_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    dtype = torch.float32 if on_cpu else stored_dtype(model_folder)
    return settings.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})


ALIKE = ("limit", "seed", "num_fewshot", "max_length", "dtype")
"""Settings that choose the items, or change scores though these are the same."""


def _check_against(target: Evaluation, model_folder: Path, settings: EvaluateSettings, source: str) -> None:
    """Refuses, before anything is evaluated, a result that is not of the model's target, or was made in another way."""
    if (model_folder / plan.FILE).is_file():
        plan.load_plan(model_folder).check_target(target.model_sha256, source)
    own = settings.model_dump(mode="json")
    for key in ALIKE:
        if target.settings.get(key) != own[key]:
            raise InputError(
                f"{source}: was made with {key} = {target.settings.get(key)}, this evaluation with {own[key]}; evaluate both alike"
            )
    lacking = [name for name in own["tasks"] if name not in target.settings.get("tasks", ())]
    if lacking:
        raise InputError(f"{source}: has no task {lacking[0]!r}; evaluate the target with the same tasks")
    if set(own["tasks"]) == {PERPLEXITY}:
        raise InputError(NO_SCORE)


def evaluate(model_folder: Path, out: Path, settings: EvaluateSettings, against: Path | None = None) -> Evaluation:
    """Evaluates a checkpoint and writes ``out`` (JSON).

    Args:
        against: the target's result; adds retention.

    Raises:
        InputError: no such model, task or target's result; a target that was asked other items or in another way, or that is not
            the one whose plan the model was pruned by. What shows only then, after the evaluation, costs the retention alone.
    """
    if out.is_dir():
        raise InputError(f"{out}: is a folder; give the name of a JSON file as --out")
    check_parent(out)
    settings = _with_dtype(settings, model_folder)
    target = read_evaluation(against) if against else None
    if target:
        _check_against(target, model_folder, settings, str(against))
    sha256 = checkpoint_hash(model_folder)
    run = provenance.Run("evaluate", settings.model_dump(mode="json"), {"model": sha256}, settings.seed)
    model, tokenizer = load_target(model_folder, settings.dtype, settings.device)
    results, samples, groups = harness.run(model, tokenizer, settings, model_folder)
    scores = tuple(
        scored(
            task=name,
            times=settings.bootstrap,
            seed=settings.seed,
            part_of=groups.get(name),
            **harness.items_of(name, found),
        )
        for name, found in samples.items()
    )
    made = Evaluation(
        model_sha256=sha256, settings=run.identity["settings"], tasks=scores,
        mean_score=mean_score(scores) if any(not s.is_perplexity for s in scores) else None,
        run=run.record(),
    )  # fmt: skip

    def write() -> None:
        write_text(out, json.dumps({**results, OURS: made.model_dump(mode="json")}, indent=1, default=str) + "\n")

    write()
    if target:
        kept = retention(scores, target.tasks, settings.bootstrap, settings.seed, str(against))
        made = made.model_copy(update={"target_sha256": target.model_sha256, "retention": kept})
        write()
    return made
