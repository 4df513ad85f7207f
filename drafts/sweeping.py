"""Levers side by side: one recipe, varied; every variant trained on the same budget and judged on the same answers.

A stage that several variants share is made once. Judgement without an engine (``judging``), so that a busy machine does not
change the order; what the best ones gain when served is for ``measure`` and ``compare`` to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Table

from drafts.building import Recipe, check_recipe, read_recipe
from drafts.distilling import DATA, DistillSettings, distill
from drafts.judging import JudgeSettings, judge
from drafts.merging import MergeSettings, merge
from drafts.recovery import recover
from drafts.training import RecoverSettings
from pruning.checkpoint import load_config
from pruning.plan import load_plan
from pruning.prune import PruneSettings, decide, prune, prune_run
from pruning.width import check_width
from stages.errors import InputError
from stages.folders import storage_errors, write_text
from stages.hashing import checkpoint_hash, file_hash, value_hash
from stages.progress import log
from stages.provenance import read, up_to_date
from stages.settings import Settings, read_yaml, validate

FILE = "sweep.json"


class Lever(Settings):
    """One variant of the recipe.

    Attributes:
        prune, distill, recover: settings that differ from the recipe's. Naming layers or their number replaces what the recipe
            says about them.
        untrained: the pruned model as it is: no data, no training.
        after: a lever whose draft answers the prompts and is trained further, on its own answers.
        merge: instead: two other levers, whose drafts are merged.
    """

    prune: dict[str, Any] = Field(default_factory=dict)
    distill: dict[str, Any] = Field(default_factory=dict)
    recover: dict[str, Any] = Field(default_factory=dict)
    untrained: bool = False
    after: str | None = None
    merge: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        """Refuses a draft that would be made in two ways."""
        if bool(self.after) + bool(self.merge) + self.untrained > 1:
            raise ValueError("untrained, after and merge exclude each other: give one of them")
        if self.untrained and (self.distill or self.recover):
            raise ValueError("untrained takes no settings of distill and recover: nothing is trained")
        return self

    @property
    def parents(self) -> tuple[str, ...]:
        """The levers whose drafts it needs."""
        return self.merge or ((self.after,) if self.after else ())


class Sweep(Settings):
    """A sweep file. ``recipe`` is relative to that file; ``out`` to where the command runs.

    Attributes:
        recover: settings of every lever's recovery, in place of the recipe's: the budget that all have.
        answers: how the target answers the recipe's validation prompts, which all drafts are judged on.
    """

    recipe: Path
    out: Path
    levers: dict[str, Lever] = Field(min_length=1)
    recover: dict[str, Any] = Field(default_factory=dict)
    answers: DistillSettings = DistillSettings()
    judge: JudgeSettings = JudgeSettings()


SPENT = ("train_seconds", "train_tokens")
"""What a lever that starts from others has spent together with them."""

HOW_MANY = {"keep", "remove", "layers", "method"}


def varied(recipe: Recipe, name: str, lever: Lever) -> Recipe:
    """The recipe with a lever's settings.

    Raises:
        InputError: a setting that does not exist or cannot be so.
    """
    pruned = recipe.prune.model_dump(exclude_none=True)
    if lever.prune.keys() & HOW_MANY:
        pruned = {key: value for key, value in pruned.items() if key not in HOW_MANY}
    where = f"lever {name!r}"
    distilled = {**recipe.distill.model_dump(), "engine_args": recipe.distill.engine_args}  # which a dump leaves out
    changes = {
        "prune": validate(PruneSettings, {**pruned, **lever.prune}, f"{where}, prune"),
        "distill": validate(DistillSettings, {**distilled, **lever.distill}, f"{where}, distill"),
        "recover": validate(RecoverSettings, {**recipe.recover.model_dump(), **lever.recover}, f"{where}, recover"),
    }
    return recipe.model_copy(update=changes)


def continued(recipe: Recipe, draft: Path | None) -> Recipe:
    """The recipe with a draft that is trained further on what it says itself; unchanged without one."""
    if draft is None:
        return recipe
    distilling = recipe.distill.model_copy(update={"answerer": draft})
    return recipe.model_copy(
        update={"distill": distilling, "recover": recipe.recover.model_copy(update={"start": draft})}
    )


def read_sweep(path: Path) -> tuple[Sweep, Recipe]:
    """Reads a sweep file and its recipe, and refuses what can be refused before any work."""
    sweep = read_yaml(path, Sweep)
    recipe = read_recipe(path.resolve().parent / sweep.recipe)
    budget = validate(RecoverSettings, {**recipe.recover.model_dump(), **sweep.recover}, f"{path}, recover")
    recipe = recipe.model_copy(update={"recover": budget})
    config, places = load_config(recipe.target), dict[str, str]()
    for name, lever in sweep.levers.items():
        own = varied(recipe, name, lever)
        decide(config.num_hidden_layers, own.prune)
        if own.prune.mlp_width is not None:
            check_width(config, own.prune.mlp_width)
        other = places.setdefault(slug(name), name)
        if other != name or not slug(name):
            raise InputError(
                f"{path}: lever {name!r} has the folder {slug(name)!r}, as has {other!r}; give it another name"
            )
        for parent in lever.parents:
            if parent not in sweep.levers or sweep.levers[parent].parents:
                known = ", ".join(other for other, found in sweep.levers.items() if not found.parents)
                raise InputError(f"{path}: lever {name!r} starts from {parent!r}; it can start from {known}")
        if lever.after:
            earlier = varied(recipe, lever.after, sweep.levers[lever.after])
            if own.prune != earlier.prune:
                raise InputError(
                    f"{path}: lever {name!r} keeps other parts than {lever.after!r}; give both the same 'prune'"
                )
            if own.recover.ce_weight > 0:
                raise InputError(
                    f"{path}: lever {name!r}: a draft's own answers teach nothing as labels; set ce_weight to 0"
                )
    check_recipe(recipe)
    return sweep, recipe


class _Stages:
    """Folders of stages by what they are made from, so that variants share them."""

    def __init__(self, out: Path):
        self._out = out / "stages"

    def _folder(self, stage: str, *made_from: Any) -> Path:
        return self._out / f"{stage}-{value_hash([str(part) for part in made_from])[:10]}"

    def pruned(self, recipe: Recipe) -> Path:
        """The pruned model of a variant."""
        pruned = self._folder("pruned", recipe.target, recipe.prune.model_dump_json())
        if not up_to_date(prune_run(recipe.target, recipe.prune), pruned):
            prune(recipe.target, pruned, recipe.prune)
        return pruned

    def draft(self, recipe: Recipe) -> Path:
        """The recovered draft of a variant."""
        pruned = self.pruned(recipe)
        data = self._folder("data", recipe.target, recipe.distill.model_dump_json())
        distill(recipe.target, recipe.prompts.train, data, recipe.distill)
        draft = self._folder("draft", pruned, data, recipe.recover.model_dump_json())
        recover(recipe.target, pruned, data, draft, recipe.recover)
        return draft

    def merged(self, recipe: Recipe, first: Path, second: Path) -> Path:
        """Two drafts as one."""
        draft = self._folder("merged", first, second)
        merge(recipe.target, first, second, draft, MergeSettings())
        return draft


def slug(name: str) -> str:
    """A lever's name as a folder's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def link(folder: Path, place: Path) -> None:
    """Puts a link to a folder where people look for it."""
    with storage_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(folder.resolve(), target_is_directory=True)


def row_of(
    name: str, lever: Lever, draft: Path, figures: list[dict[str, Any]], parents: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """One row of the sweep; the budget as it was used, by the parents too.

    Args:
        parents: rows of the levers that it starts from.
    """
    position = (read(draft) or {}).get("position", {})
    own = {"train_seconds": position.get("seconds", 0.0), "train_tokens": position.get("tokens", 0)}
    return {
        "lever": name, "settings": lever.model_dump(mode="json", exclude_defaults=True), "draft": str(draft),
        "kept_layers": list(load_plan(draft).kept_layers),
        **{key: own[key] + sum(row[key] for row in parents) for key in SPENT},
        "figures": figures,
    }  # fmt: skip


def judged(sweep: Sweep, recipe: Recipe, draft: Path, answers: Path) -> list[dict[str, Any]]:
    """Judges a draft; one that was judged on the same answers before is not judged again."""
    settings = sweep.judge.model_dump(mode="json")
    identity = value_hash([JUDGING, checkpoint_hash(draft), file_hash(answers / DATA), settings])
    file = sweep.out / "judged" / f"{identity[:16]}.json"
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        judge(recipe.target, draft, answers, file, sweep.judge)
    return list(json.loads(file.read_text(encoding="utf-8")))


JUDGING = 1
"""Raised when the same draft is judged otherwise than before."""


def run_sweep(path: Path) -> list[dict[str, Any]]:
    """Trains and judges every lever; writes ``out/sweep.json`` after each. An interrupted sweep goes on where it stopped."""
    sweep, recipe = read_sweep(path)
    stages, answers = _Stages(sweep.out), sweep.out / "answers"
    distill(recipe.target, recipe.prompts.validation, answers, sweep.answers)
    drafts: dict[str, Path] = {}
    rows: list[dict[str, Any]] = []
    in_order = sorted(sweep.levers.items(), key=lambda item: bool(item[1].parents))
    for number, (name, lever) in enumerate(in_order, 1):
        log(f"[{number}/{len(in_order)}] {name}")
        if lever.untrained:
            drafts[name] = stages.pruned(varied(recipe, name, lever))
        elif lever.merge:
            drafts[name] = stages.merged(recipe, *(drafts[parent] for parent in lever.merge))
        else:
            drafts[name] = stages.draft(continued(varied(recipe, name, lever), drafts.get(lever.after or "")))
        link(drafts[name], sweep.out / "drafts" / slug(name))
        found = judged(sweep, recipe, drafts[name], answers)
        rows.append(row_of(name, lever, drafts[name], found, [row for row in rows if row["lever"] in lever.parents]))
        write_text(sweep.out / FILE, json.dumps(rows, indent=1) + "\n")
    return rows


def render(rows: list[dict[str, Any]], tokens: int, console: Console) -> None:
    """Prints overlap, agreement and the mean acceptance length with ``tokens`` draft tokens, best first."""

    def length(row: dict[str, Any]) -> float:
        return sum(found["acceptance_lengths"][tokens - 1] for found in row["figures"]) / len(row["figures"])

    table = Table(box=None, padding=(0, 1, 0, 0), title=f"answers to validation prompts, {tokens} draft tokens")
    kinds = [f"{found['kind']} T={found['temperature']:g}" for found in rows[0]["figures"]]
    for head in ("lever", "layers", "seconds", "overlap", "agree", *kinds):
        table.add_column(head, justify="left" if head == "lever" else "right")
    for row in sorted(rows, key=length, reverse=True):
        shares = [sum(f[name] for f in row["figures"]) / len(row["figures"]) for name in ("overlap", "agreement")]
        seconds = row["train_seconds"]
        table.add_row(
            row["lever"], ",".join(map(str, row["kept_layers"])), "–" if seconds is None else f"{seconds:.0f}",
            *(f"{share:.3f}" for share in shares),
            *(f"{found['acceptance_lengths'][tokens - 1]:.2f}" for found in row["figures"]),
        )  # fmt: skip
    console.print(table)
