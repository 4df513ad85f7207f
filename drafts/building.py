"""Walks a recipe: target + prompts → pruned → self-distilled data → draft → measurements → serving.json, with resume."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from drafts.choice import ChooseSettings
from drafts.distilling import DistillSettings, distill
from drafts.measuring import MeasureSettings, measure
from drafts.methods import wants_suffix
from drafts.pairing import choose_pair
from drafts.processes import refuse_too_many
from drafts.prompts import read_prompts, refuse_overlap
from drafts.recovery import recover
from drafts.training import RecoverSettings
from pruning.checkpoint import load_config
from pruning.prune import PruneSettings, decide, prune, prune_run
from stages.errors import InputError
from stages.progress import log
from stages.provenance import up_to_date
from stages.settings import Settings, read_yaml


class Prompts(Settings):
    """Prompt files: for self-distillation, for choosing settings, for published figures only."""

    train: Path
    validation: Path
    heldout: Path | None = None


class Recipe(Settings):
    """One build. Paths in a recipe file are relative to that file; ``out`` is relative to where the command runs.

    Attributes:
        processes: how many train the draft side by side (``accelerate launch``), each on a GPU of its own where there are some.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    target: Path
    prompts: Prompts
    out: Path
    max_model_len: int = Field(default=512, ge=16)
    processes: int = Field(default=1, ge=1)
    prune: PruneSettings = PruneSettings()
    distill: DistillSettings = DistillSettings()
    recover: RecoverSettings = RecoverSettings()
    measure: MeasureSettings = MeasureSettings()
    choose: ChooseSettings = ChooseSettings()


def read_recipe(path: Path) -> Recipe:
    """Reads a recipe, resolves its paths, and hands its prompts to the stages that need text."""
    recipe = read_yaml(path, Recipe)
    for name in ("distill", "measure"):
        if "max_model_len" in getattr(recipe, name).model_fields_set:
            raise InputError(f"{path}: '{name}.max_model_len': give 'max_model_len' once, for the whole recipe")
    home = path.resolve().parent
    prompts = Prompts(**{key: home / value for key, value in recipe.prompts if value is not None})
    calibration = tuple(home / file for file in recipe.prune.calibration) or (prompts.train,)
    length = {"max_model_len": recipe.max_model_len}
    answerer = recipe.distill.answerer and home / recipe.distill.answerer
    start = recipe.recover.start and home / recipe.recover.start
    changes = {
        "target": (home / recipe.target).resolve(),
        "prompts": prompts,
        "prune": recipe.prune.model_copy(update={"calibration": calibration}),
        "distill": recipe.distill.model_copy(update={**length, "answerer": answerer}),
        "measure": recipe.measure.model_copy(update=length),
        "recover": recipe.recover.model_copy(
            update={"max_length": min(recipe.recover.max_length, recipe.max_model_len), "start": start}
        ),
    }
    return recipe.model_copy(update=changes)


@dataclass(frozen=True)
class Stage:
    """One arrow of the way: its name, the folder it writes, and how it is made (nothing happens if it is current)."""

    name: str
    folder: Path
    make: Callable[[], None]


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe in order."""
    target, prompts = recipe.target, recipe.prompts
    pruned, data, draft, measured, pair = (
        recipe.out / name for name in ("pruned", "data", "draft", "measured", "pair")
    )

    def make_pruned() -> None:
        if not up_to_date(prune_run(target, recipe.prune), pruned):
            prune(target, pruned, recipe.prune)

    return [
        Stage("prune", pruned, make_pruned),
        Stage("distill", data, lambda: distill(target, prompts.train, data, recipe.distill)),
        Stage("recover", draft, lambda: recover(target, pruned, data, draft, recipe.recover, recipe.processes)),
        Stage("measure", measured, lambda: measure(target, draft, prompts.validation, measured, recipe.measure)),
        Stage(
            "choose", pair,
            lambda: choose_pair(target, draft, measured, pair, recipe.choose, recipe.name, recipe.max_model_len),
        ),
    ]  # fmt: skip


def check_recipe(recipe: Recipe) -> None:
    """Refuses what can be refused before any work: target, number of layers, prompts, a missing package, a place to write."""
    decide(load_config(recipe.target).num_hidden_layers, recipe.prune)
    wants_suffix(recipe.measure.suffix)
    refuse_too_many(recipe.processes)
    training, validation = read_prompts(recipe.prompts.train), read_prompts(recipe.prompts.validation)
    refuse_overlap(training, validation)
    if recipe.prompts.heldout:
        heldout = read_prompts(recipe.prompts.heldout)
        refuse_overlap(training, heldout)
        refuse_overlap(validation, heldout)
    out = recipe.out.absolute()
    parent = next(path for path in (out, *out.parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{recipe.out}: cannot be written; choose another folder with --out")


def build(recipe: Recipe) -> Path:
    """Runs every stage whose settings or inputs changed since it last finished; returns the pair's folder."""
    check_recipe(recipe)
    stages = stages_of(recipe)
    for number, stage in enumerate(stages, 1):
        log(f"[{number}/{len(stages)}] {stage.name} → {stage.folder}")
        stage.make()
    return stages[-1].folder
