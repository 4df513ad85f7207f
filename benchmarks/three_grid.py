"""What `make results-three-systems` measures: its cells, and the budgets of the quick and the full form."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from stages.settings import Settings

Rows = list[dict[str, Any]]
Export = Literal["uniform", "ragged"]
Table = Literal["depth", "width", "structured", "acceptance", "exports", "speed", "cost"]

BASELINES = ("magnitude", "wanda_sp", "flap")
CRITERIA = ("cfsp:activation", "cfsp:paper", "cfsp:relative")
TEACHERS = ("nuteprune:intact", "nuteprune:numerous")
ARMS = ("depth:pruned", "depth:sft", "depth:selfdata", "depth:merged")
SCRATCH = "scratch"
"""A new model of a pruned one's shape, trained for the seconds that pruning and recovery took."""
METHODS = (*BASELINES, *CRITERIA, *TEACHERS, *ARMS, SCRATCH)
NONE = "none"
RANKS = ("uniform", "important_first", "pruned_first")
FOREIGN = "full:foreign"
"""``full`` on prompts and reference answers from a library that the target never saw: text that is not what it was trained on."""


@dataclass(frozen=True)
class Cell:
    """One thing that is measured.

    Attributes:
        sparsity: share of layers (depth), of FFN channels (width) or of the layers' linear weights (structured) that goes.
        recovery: training after pruning: ``none``, or how (``uniform`` and the other ``lora_ranks``, ``full``, ``full:foreign``).
    """

    table: Table
    method: str
    sparsity: float
    recovery: str
    seed: int

    @property
    def slug(self) -> str:
        """Its folder's name."""
        parts = (self.table, self.method, f"{100 * self.sparsity:.0f}", self.recovery, f"seed{self.seed}")
        return re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(parts))


def row(cell: Cell, metric: str, value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    """One row of three_systems.json."""
    return {**asdict(cell), "metric": metric, "value": value, "low": low, "high": high}


class Grid(Settings):
    """What is measured, on which budgets.

    Attributes:
        seeds: of calibration text, answers and training; the evaluation's items are the same in all.
        removed_layers: depth pruning, on a target of ``num_layers``.
        depth_method: which layers go.
        recovered: what is trained again after narrowing, at ``recovered_sparsities``.
        scratch: whether a model is also trained from scratch for each number of removed layers.
        foreign: arms of depth pruning that are also trained on text that is not the target's own, with the most layers removed.
        served: what is served beside the target, with its export.
        evaluation_limit: items of each task.
        tokens: positions of each recovery, prompts (with half the weight) and answers.
        depth_tokens: positions of the recoveries that stand beside the paper's, which are answers' alone, as its loss has them; a
            merged model's two parents have half of them each.
        depth_calibration_tokens: text that layers are chosen by.
        learning_rate, adam_learning_rate: of recoveries, for matrices and for the rest.
        scratch_learning_rate, scratch_adam_learning_rate: likewise of new models.
        nuteprune_steps: search and fine-tuning together.
    """

    quick: bool
    seeds: tuple[int, ...]
    num_layers: int = 24
    removed_layers: tuple[int, ...] = (5, 6)
    depth_method: str = "angular"
    width_sparsities: tuple[float, ...] = (0.2, 0.3, 0.5)
    recovered: tuple[str, ...] = ("cfsp:paper",)
    recovered_sparsities: tuple[float, ...] = (0.3, 0.5)
    recoveries: tuple[str, ...] = RANKS
    structured_sparsities: tuple[float, ...] = (0.2, 0.25, 0.5)
    scratch: bool = True
    foreign: tuple[str, ...] = ("depth:sft", "depth:selfdata")
    served: tuple[tuple[str, float, Export], ...] = (
        ("depth:pruned", 5 / 24, "uniform"), ("depth:pruned", 6 / 24, "uniform"),
        ("cfsp:paper", 0.3, "uniform"), ("cfsp:paper", 0.3, "ragged"),
        ("cfsp:paper", 0.5, "uniform"), ("cfsp:paper", 0.5, "ragged"),
        ("nuteprune:numerous", 0.25, "uniform"), ("nuteprune:numerous", 0.25, "ragged"),
        ("nuteprune:numerous", 0.5, "uniform"), ("nuteprune:numerous", 0.5, "ragged"),
    )  # fmt: skip
    calibration_tokens: int = 32768
    depth_calibration_tokens: int = 16384
    evaluation_limit: int | None = 150
    answers: int = 800
    answer_tokens: int = 64
    tokens: int = 120_000
    depth_tokens: int = 40_000
    batch_tokens: int = 1024
    learning_rate: float = 0.005
    adam_learning_rate: float = 0.001
    scratch_learning_rate: float = 0.02
    scratch_adam_learning_rate: float = 0.004
    lora_rank: int = 16
    nuteprune_steps: int = 160
    judged_prompts: int = 60
    judged_tokens: int = 4
    served_prompts: int = 16
    served_tokens: int = 64
    served_repeats: int = 6
    served_at_once: int = 3
    enforce_eager: bool = False
    cost_repeats: int = 7


FULL = Grid(quick=False, seeds=(0, 1, 2))
QUICK = Grid(
    quick=True, seeds=(0,), removed_layers=(6,), foreign=(), width_sparsities=(0.5,), recoveries=("uniform", "important_first"),
    structured_sparsities=(0.25,), served=(("depth:pruned", 0.25, "uniform"), ("cfsp:paper", 0.5, "uniform")),
    calibration_tokens=4096, depth_calibration_tokens=4096, evaluation_limit=16, answers=96, answer_tokens=48, tokens=6_000,
    depth_tokens=2_000,
    nuteprune_steps=10, judged_prompts=12, served_prompts=4, served_tokens=24, served_repeats=1, served_at_once=2,
    enforce_eager=True, cost_repeats=3,
)  # fmt: skip


def recovery_of(arm: str) -> str:
    """What follows the removal of layers."""
    return NONE if arm == "depth:pruned" else "full"


def models_of(grid: Grid) -> list[Cell]:
    """The cells that each need a model of their own: those of the tables depth, width and structured."""
    cells: list[Cell] = []
    for seed in grid.seeds:
        for removed in grid.removed_layers:
            share = removed / grid.num_layers
            arms = [*ARMS, SCRATCH] if grid.scratch else list(ARMS)
            cells += [Cell("depth", arm, share, recovery_of(arm), seed) for arm in arms]
            if removed == grid.removed_layers[-1]:
                cells += [Cell("depth", arm, share, FOREIGN, seed) for arm in grid.foreign]
        for sparsity in grid.width_sparsities:
            cells += [Cell("width", method, sparsity, NONE, seed) for method in (*BASELINES, *CRITERIA)]
            if sparsity in grid.recovered_sparsities:
                cells += [Cell("width", m, sparsity, how, seed) for m in grid.recovered for how in grid.recoveries]
        for sparsity in grid.structured_sparsities:
            cells += [Cell("structured", method, sparsity, "lora", seed) for method in TEACHERS]
    return cells


def cells_of(grid: Grid) -> list[Cell]:
    """All cells in the order they are measured; what a later one needs is made by an earlier one where both need it."""
    models = models_of(grid)
    judged = [
        Cell("acceptance", cell.method, cell.sparsity, cell.recovery, cell.seed)
        for cell in models
        if cell.seed == grid.seeds[0] and not (cell.table == "width" and cell.method in BASELINES)
    ]
    first = grid.seeds[0]
    served = list(dict.fromkeys(Cell("speed", method, sparsity, NONE, first) for method, sparsity, _ in grid.served))
    costs = [
        *(Cell("cost", method, grid.width_sparsities[-1], NONE, first) for method in (*BASELINES, *CRITERIA)),
        *(Cell("cost", method, grid.structured_sparsities[0], "lora", first) for method in TEACHERS),
        *(Cell("cost", m, grid.width_sparsities[-1], "important_first", first) for m in grid.recovered),
        *(Cell("cost", arm, grid.removed_layers[-1] / grid.num_layers, recovery_of(arm), first) for arm in ARMS),
    ]
    exported = [replace(cell, table="exports") for cell in served]
    return [*models, *judged, *exported, *served, *costs]
