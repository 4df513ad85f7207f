"""Makes the models of `make results-three-systems` with the product's own stages; a stage that several cells share is made once.

All training and scoring is in float32, which every processor is quick at.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.three_grid import FOREIGN, NONE, SCRATCH, Cell, Export, Grid
from drafts import distilling, recovery
from drafts.distilling import DistillSettings, distill
from drafts.merging import MergeSettings, merge
from drafts.recovery import recover
from drafts.training import RecoverSettings
from pruning.nuteprune import state
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.stage import prune_masks
from pruning.prune import prune, prune_run
from pruning.prune_width import prune_width, width_run
from pruning.settings import PruneSettings, WidthSettings
from reference.corpus import of_packages
from reference.make_prompts import TRAIN_CHAT, TRAIN_CODE, make
from stages.errors import InputError
from stages.folders import write_text
from stages.hashing import value_hash
from stages.provenance import read, up_to_date
from stages.settings import Settings, validate

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "reference" / "target"
TRAIN = ROOT / "reference" / "prompts" / "train.jsonl"

FOREIGN_PACKAGE = "networkx"
"""Whose functions foreign prompts ask of: it comes with torch, and no text of it was the target's."""
FOREIGN_VERSION = importlib.metadata.version(FOREIGN_PACKAGE)

STAGES = {
    "pruned": "prune_s", "narrowed": "prune_s", "nuteprune": "prune_s",
    "data": "answers_s", "recovered": "recover_s", "merged": "recover_s",
}  # fmt: skip
"""Which time a folder of a stage counts to, by the first part of its name."""

HARMLESS = {*recovery.HARMLESS, *distilling.HARMLESS, *state.HARMLESS}
"""Settings of stages that say how the work is done and not what comes out."""


@contextmanager
def alone(folder: Path) -> Iterator[Path]:
    """Lets one process at a time make a folder: who waited finds it up to date."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


class Workshop:
    """Folders of stages by what they are made from; several processes may share them.

    Args:
        out: the run's folder; stages go to ``out/stages``.
    """

    def __init__(self, grid: Grid, out: Path, target: Path = TARGET, prompts: Path = TRAIN):
        self.grid, self.target, self.prompts, self._out = grid, target, prompts, out / "stages"

    def _folder(self, stage: str, *made_from: Any) -> Path:
        parts = [part.model_dump_json() if isinstance(part, Settings) else str(part) for part in made_from]
        return self._out / f"{stage}-{value_hash(parts)[:12]}"

    def _make(self, stage: str, made_from: Sequence[Any], work: Callable[[Path], None]) -> Path:
        """The folder of a stage, made by ``work`` where it is not there."""
        with alone(self._folder(stage, *made_from)) as folder:
            work(folder)
        return folder

    def answers(self, mode: str, seed: int, kind: str | None = None, foreign: bool = False) -> Path:
        """Training data: ``direct``, the target's own answers, or ``reference``, those of the prompts' own text."""
        grid = self.grid
        prompts = self._foreign_prompts() if foreign else self.prompts
        settings = DistillSettings(
            backend="transformers", max_prompts=grid.answers, max_tokens=grid.answer_tokens, seed=seed,
            mixture={mode: 1.0}, kinds=None if kind is None else (kind,),  # type: ignore[dict-item]
        )  # fmt: skip
        return self._make(
            "data", (settings, *((prompts.name,) if foreign else ())),
            lambda folder: distill(self.target, prompts, folder, settings),
        )  # fmt: skip

    def _foreign_prompts(self) -> Path:
        """At most as many prompts of each kind as training has, made likewise from a library that the target never saw."""
        with alone(self._out / f"{FOREIGN_PACKAGE}-{FOREIGN_VERSION}.jsonl") as file:
            if not file.is_file():
                made = make(of_packages((FOREIGN_PACKAGE,)), FOREIGN_PACKAGE, TRAIN_CODE, TRAIN_CHAT, set())
                write_text(file, "".join(json.dumps(record) + "\n" for record in made))
        return file

    def pruned(self, cell: Cell, export: Export = "ragged") -> Path:
        """The model of a cell before any recovery but NutePrune's own, which is part of it."""
        system = cell.method.partition(":")[0]
        if system in ("depth", SCRATCH):
            return self._fewer_layers(cell)
        if system == "nuteprune":
            return self._masked(cell, export)
        return self._narrower(cell, export)

    def spent(self) -> dict[str, float]:
        """Wall times in seconds of all that was made here: of pruning, of answers, of recoveries with their merging."""
        seconds: dict[str, float] = {}
        for folder in sorted(place for place in self._out.iterdir() if place.is_dir() and place.name[0] != "."):
            name = STAGES[folder.name.partition("-")[0]]
            seconds[name] = seconds.get(name, 0.0) + seconds_of(folder)
        return seconds

    def _fewer_layers(self, cell: Cell) -> Path:
        settings = PruneSettings(
            method=self.grid.depth_method, remove=round(cell.sparsity * self.grid.num_layers),
            calibration=(self.prompts,), calibration_tokens=self.grid.depth_calibration_tokens,
            seed=cell.seed, dtype="float32",
        )  # type: ignore[arg-type]  # fmt: skip

        def cut(folder: Path) -> None:
            if not up_to_date(prune_run(self.target, settings), folder):
                prune(self.target, folder, settings)

        return self._make("pruned", (settings,), cut)

    def _masked(self, cell: Cell, export: Export) -> Path:
        values = {
            "sparsity": cell.sparsity, "teachers": cell.method.partition(":")[2], "steps": self.grid.nuteprune_steps,
            "export": export, "seed": cell.seed, "calibration": (self.prompts,), "mixed_precision": "no",
        }  # fmt: skip
        settings = validate(NutePruneSettings, values, cell.slug)
        return self._make("nuteprune", (settings,), lambda folder: prune_masks(self.target, folder, settings))

    def _narrower(self, cell: Cell, export: Export) -> Path:
        method, _, criterion = cell.method.partition(":")
        values = {
            "method": method, "criterion": criterion or None, "sparsity": cell.sparsity, "export": export,
            "calibration": (self.prompts,), "calibration_tokens": self.grid.calibration_tokens, "seed": cell.seed,
            "dtype": "float32",
        }  # fmt: skip
        settings = validate(WidthSettings, values, cell.slug)

        def narrow(folder: Path) -> None:
            if not up_to_date(width_run(self.target, settings), folder):
                prune_width(self.target, folder, settings)

        return self._make("narrowed", (settings,), narrow)

    def training(self, cell: Cell, **changes: Any) -> RecoverSettings:
        """How recoveries train: cross-entropy on answers, and prompts with half the weight.

        Arms differ in their data and see as many judged positions; shorter answers make more steps of them.
        """
        grid = self.grid
        values: dict[str, Any] = {
            "kl_weight": 0.0, "ce_weight": 1.0, "tokens": grid.tokens, "batch_tokens": grid.batch_tokens,
            "learning_rate": grid.learning_rate, "adam_learning_rate": grid.adam_learning_rate, "seed": cell.seed,
            "mixed_precision": "no", **changes,
        }  # fmt: skip
        return RecoverSettings(**values)

    def _recovered(self, pruned: Path, data: Path, settings: RecoverSettings) -> Path:
        return self._make(
            "recovered", (pruned, data, settings), lambda folder: recover(self.target, pruned, data, folder, settings)
        )

    def model(self, cell: Cell) -> Path:
        """The model that a cell measures."""
        system, _, arm = cell.method.partition(":")
        if cell.recovery == NONE or system == "nuteprune":
            return self.pruned(cell)
        if system == SCRATCH:
            return self._from_scratch(cell)
        if system == "depth":
            return self._merged(cell) if arm == "merged" else self._trained(cell, arm)
        lora = self.training(
            cell, method="lora", lora_rank=self.grid.lora_rank, lora_ranks=cell.recovery, optimizer="adamw"
        )
        return self._recovered(self.pruned(cell), self.answers("direct", cell.seed), lora)

    def _on_answers(self, cell: Cell, tokens: int) -> RecoverSettings:
        """As the paper's loss has it: prompts are read and not learned."""
        return self.training(cell, tokens=tokens, prompt_weight=0.0)

    def _trained(self, cell: Cell, arm: str) -> Path:
        if arm not in ("sft", "selfdata"):
            raise InputError(f"{cell.method}: no such arm of depth pruning; pruned, sft, selfdata or merged")
        data = self.answers("reference" if arm == "sft" else "direct", cell.seed, foreign=cell.recovery == FOREIGN)
        return self._recovered(self.pruned(cell), data, self._on_answers(cell, self.grid.depth_tokens))

    def _merged(self, cell: Cell) -> Path:
        """Two recoveries on the target's answers to code and to chat prompts, each on half of the budget, as one model."""
        half = self._on_answers(cell, max(1, self.grid.depth_tokens // 2))
        pruned = self.pruned(cell)
        parents = [self._recovered(pruned, self.answers("direct", cell.seed, kind), half) for kind in ("code", "chat")]
        settings = MergeSettings()
        return self._make(
            "merged", (*parents, settings), lambda folder: merge(self.target, parents[0], parents[1], folder, settings)
        )

    def _from_scratch(self, cell: Cell) -> Path:
        """New weights of the pruned model's shape, trained on the corpus for as long as pruning and recovery took together."""
        selfdata = Cell(cell.table, "depth:selfdata", cell.sparsity, cell.recovery, cell.seed)
        settings = self.training(
            cell,
            from_scratch=True,
            tokens=10**9,
            max_seconds=self._seconds(self.pruned(selfdata), self.model(selfdata)),
            learning_rate=self.grid.scratch_learning_rate,
            adam_learning_rate=self.grid.scratch_adam_learning_rate,
        )
        return self._recovered(self.pruned(selfdata), self.answers("reference", cell.seed), settings)

    def _seconds(self, *folders: Path) -> float:
        """How long the stages took that wrote these folders."""
        return round(sum(seconds_of(folder) for folder in folders), 1)


def _noted(part: Any) -> Any:
    """What counts of a part that a stage is made from; of settings all but where texts lie and how the work is done."""
    if not isinstance(part, Settings):
        return part
    noted = part.model_dump(mode="json", exclude={"calibration", *HARMLESS})
    return {**noted, "multiplier_rate": part.rate_of_multipliers} if isinstance(part, NutePruneSettings) else noted


class Recipe(Workshop):
    """Makes nothing, and notes what each stage of a cell's model would be made with: settings, and what prompts of its own."""

    def __init__(self, grid: Grid):
        super().__init__(grid, Path())
        self.stages: list[dict[str, Any]] = []

    def _make(self, stage: str, made_from: Sequence[Any], work: Callable[[Path], None]) -> Path:
        noted = {stage: [_noted(part) for part in made_from if not isinstance(part, Path)]}
        if noted not in self.stages:
            self.stages.append(noted)
        return self._folder(stage, *made_from)

    def _foreign_prompts(self) -> Path:
        return Path(f"{FOREIGN_PACKAGE}-{FOREIGN_VERSION}.jsonl")

    def _seconds(self, *folders: Path) -> float:
        return 1.0


def seconds_of(folder: Path) -> float:
    """Wall time of the stage that wrote a folder, with what it trained before it was interrupted."""
    record = read(folder)
    if record is None:
        raise InputError(f"{folder}: has no run.json; remove the folder and run the same command again")
    trained = record.get("position", {}).get("seconds") or record.get("figures", {}).get("train_s") or 0.0
    return max(float(record["wall_s"]), float(trained))
