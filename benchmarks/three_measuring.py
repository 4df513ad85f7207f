"""How each cell of the three systems is measured: a model is made, then evaluated, judged, served or timed."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.three_cost import peak_mib, scoring_over_forward
from benchmarks.three_grid import NONE, Cell, Grid, Rows, row
from benchmarks.three_models import HARMLESS, ROOT, TARGET, Export, Recipe, Workshop, alone
from drafts.asking import Asking, ask_methods
from drafts.blocks import blocks_of, conditions_of
from drafts.cells import rows_of
from drafts.distilling import DistillSettings, distill
from drafts.judging import JudgeSettings, judge
from drafts.methods import EngineOptions, Method
from drafts.prompts import read_prompts, sample
from evaluation.evaluating import Evaluation, evaluate
from evaluation.scores import Ratio
from evaluation.settings import EvaluateSettings
from pruning.checkpoint import load_tokenizer
from pruning.settings import WidthSettings
from stages.hashing import checkpoint_hash, file_hash, value_hash

SERVING = {"served_prompts", "served_tokens", "served_repeats", "served_at_once", "enforce_eager"}
"""The grid's fields on how models are served."""
KEPT = ("retention", "retention_above_chance", "bits_ratio")
"""What an evaluation says of a model beside its target, as metrics."""
VALIDATION = ROOT / "reference" / "prompts" / "validation.jsonl"


def of_ratio(cell: Cell, metric: str, ratio: Ratio | None) -> Rows:
    """A row of a share of the target's, none where it is undefined."""
    return [] if ratio is None or ratio.value is None else [row(cell, metric, ratio.value, ratio.low, ratio.high)]


def rows_of_evaluation(cell: Cell, found: Evaluation) -> Rows:
    """Scores of every task, and what is kept of the target's."""
    scores = [
        row(cell, f"{s.task.removeprefix('understudy_')}:{s.metric}", s.score, s.low, s.high) for s in found.tasks
    ]
    kept = found.retention
    if kept is None:
        return scores
    shares = zip(KEPT, (kept.plain, kept.above_chance, kept.bits_per_byte), strict=True)
    return [*(line for name, ratio in shares for line in of_ratio(cell, name, ratio)), *scores]


def evaluation_of(grid: Grid) -> EvaluateSettings:
    """How models are evaluated."""
    return EvaluateSettings(limit=grid.evaluation_limit, dtype="float32")


def judged_answers(grid: Grid) -> DistillSettings:
    """How the target answers the prompts that drafts are judged on."""
    return DistillSettings(backend="transformers", max_prompts=grid.judged_prompts, max_tokens=grid.answer_tokens)


def judging_of(grid: Grid) -> JudgeSettings:
    """How models are judged as drafts."""
    return JudgeSettings(num_speculative_tokens=grid.judged_tokens)


def exports_of(cell: Cell, grid: Grid) -> list[Export]:
    """In which shapes a cell's model is served."""
    return [export for method, sparsity, export in grid.served if (method, sparsity) == (cell.method, cell.sparsity)]


def made_with(cell: Cell, grid: Grid) -> dict[str, Any]:
    """All settings that a cell's figures come from: of its model's stages, and of what measures it."""
    recipe = Recipe(grid)
    if cell.table in ("exports", "speed"):
        for export in exports_of(cell, grid):
            recipe.pruned(cell, export)
    else:
        recipe.model(cell)
    evaluated = {"evaluation": evaluation_of(grid).model_dump(mode="json")}
    own: dict[str, Any] = {
        "acceptance": {
            "answers": judged_answers(grid).model_dump(mode="json", exclude=HARMLESS),
            "judging": judging_of(grid).model_dump(mode="json"),
        },
        "speed": grid.model_dump(mode="json", include=SERVING),
        "cost": {"repeats": grid.cost_repeats},
    }.get(cell.table, evaluated)
    return {"cell": cell.slug, "stages": recipe.stages, **own}


class Measuring:
    """How each table's cells are measured.

    Args:
        out: the run's folder.
    """

    def __init__(self, grid: Grid, out: Path):
        self.grid, self.out = grid, out
        self.shop = Workshop(grid, out)

    def target_result(self) -> Path:
        """The target's own evaluation, made once for its settings."""
        settings = self.evaluation()
        asked = [file_hash(file) for name in settings.tasks for file in sorted(settings.task_folder.glob(f"{name}.*"))]
        made_from = [settings.model_dump(mode="json"), checkpoint_hash(TARGET), asked]
        file = self.out / "target" / f"{value_hash(made_from)[:12]}.json"
        with alone(file):
            if not file.is_file():
                evaluate(TARGET, file, settings)
        return file

    def evaluation(self) -> EvaluateSettings:
        """The same items for all models and seeds."""
        return evaluation_of(self.grid)

    def size(self, folder: Path) -> dict[str, float]:
        """Parameters of a model, and which share of the target's it lacks."""
        own, target = (_parameters(place) for place in (folder, TARGET))
        return {"parameters": own, "parameters_removed": 1 - own / target}

    def quality(self, cell: Cell, folder: Path) -> Rows:
        """Tables depth, width, structured: one model, evaluated against the target."""
        model = self.shop.model(cell)
        found = evaluate(model, folder / "evaluation.json", self.evaluation(), against=self.target_result())
        return [*rows_of_evaluation(cell, found), *(row(cell, name, v) for name, v in self.size(model).items())]

    def acceptance(self, cell: Cell, folder: Path) -> Rows:
        """How far the target would follow the model as its draft, on the target's answers to validation prompts."""
        answers, judging = self.out / "stages" / "validation-answers", judging_of(self.grid)
        with alone(answers):
            distill(TARGET, VALIDATION, answers, judged_answers(self.grid))
        found = judge(TARGET, self.shop.model(cell), answers, folder / "judged.json", judging)
        positions = sum(f.positions for f in found)
        rows = []
        for metric, values in (
            ("overlap", [f.overlap for f in found]), ("agreement", [f.agreement for f in found]),
            ("acceptance_length", [f.acceptance_lengths[-1] for f in found]),
        ):  # fmt: skip
            if metric == "acceptance_length":  # a step brings so many positions: steps are what the mean is over
                mean = positions / sum(f.positions / v for v, f in zip(values, found, strict=True))
            else:
                mean = sum(v * f.positions for v, f in zip(values, found, strict=True)) / positions
            rows.append(row(cell, metric, mean, min(values), max(values)))
        return rows

    def exports(self, cell: Cell, folder: Path) -> Rows:
        """What a model keeps of the target in each shape that it is served in."""
        rows: Rows = []
        for export in exports_of(cell, self.grid):
            model, file = self.shop.pruned(cell, export), folder / f"{export}.json"
            found = rows_of_evaluation(cell, evaluate(model, file, self.evaluation(), against=self.target_result()))
            rows += [{**kept, "metric": f"{kept['metric']}:{export}"} for kept in found if kept["metric"] in KEPT]
        return rows

    def speed(self, cell: Cell, folder: Path) -> Rows:
        """Served beside the target, plain decoding, in all exports that the grid names."""
        exports = exports_of(cell, self.grid)
        models = {export: self.shop.pruned(cell, export) for export in exports}
        rows: Rows = []
        for start in range(0, len(exports), self.grid.served_at_once):
            rows += self._served_rows(
                cell, {e: models[e] for e in exports[start : start + self.grid.served_at_once]}, folder
            )
        for export, model in models.items():
            rows += [row(cell, f"{name}:{export}", value) for name, value in self.size(model).items()]
            rows.append(
                row(cell, f"weights_mib:{export}", sum(f.stat().st_size for f in model.glob("*.safetensors")) / 2**20)
            )
        return rows

    def _served_rows(self, cell: Cell, models: dict[str, Path], folder: Path) -> Rows:
        grid = self.grid
        prompts = [
            p.model_copy(update={"kind": "all"})
            for p in sample(read_prompts(VALIDATION), max(1, grid.served_prompts // 2), 0)
        ]
        blocks = blocks_of(
            prompts, conditions_of(prompts, [1], [0.0]), grid.served_repeats, max(1, len(prompts) // 4), 0
        )
        methods = [Method("plain"), *(Method(export, model=model) for export, model in models.items())]
        how = EngineOptions(512, 2, grid.enforce_eager)
        asking = Asking(tuple(blocks), grid.served_tokens, ignore_eos=True)  # who talks longer would look faster
        cells = ask_methods(TARGET, methods, asking, folder / "engine-logs", how)
        tokenizer = load_tokenizer(TARGET)
        found = rows_of(cells, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
        return [
            line
            for f in found
            if f["method"] != "plain"
            for line in (
                row(cell, f"speedup:{f['method']}", f["speedup"], f["speedup_low"], f["speedup_high"]),
                row(cell, f"tokens_per_s:{f['method']}", f["output_tokens_per_s"]),
            )
        ]

    def cost(self, cell: Cell, folder: Path) -> Rows:
        """Wall times of the stages, and what scoring and training cost beside what they are compared with.

        The stages are run for it, with the machine to themselves: those of other tables may have been made beside each other.
        """
        shop = Workshop(self.grid, folder / "timed")
        shop.model(cell)
        rows = [row(cell, name, seconds) for name, seconds in shop.spent().items()]
        shutil.rmtree(folder / "timed")
        if cell.method.startswith("cfsp") and cell.recovery == NONE:
            settings = WidthSettings(
                method="cfsp", criterion=cell.method.partition(":")[2], sparsity=cell.sparsity, calibration=(shop.prompts,),
                calibration_tokens=self.grid.calibration_tokens, dtype="float32",
            )  # type: ignore[arg-type]  # fmt: skip
            ratios = scoring_over_forward(TARGET, settings, self.grid.cost_repeats)
            rows.append(row(cell, "scoring_over_forward", statistics.median(ratios), min(ratios), max(ratios)))
        if cell.method == "nuteprune:numerous":
            plain = peak_mib("plain", TARGET)
            rows.append(row(cell, "peak_memory_over_finetuning", peak_mib("nuteprune", TARGET) / plain))
            rows.append(row(cell, "peak_memory_with_two_models", peak_mib("second_model", TARGET) / plain))
        return rows

    def measure(self, cell: Cell, folder: Path) -> Rows:
        """All rows of a cell."""
        ways: dict[str, Callable[[Cell, Path], Rows]] = {
            "acceptance": self.acceptance, "exports": self.exports, "speed": self.speed, "cost": self.cost
        }  # fmt: skip
        return ways.get(cell.table, self.quality)(cell, folder)


def _parameters(folder: Path) -> float:
    """Weights of a checkpoint, by its files: tied ones count once, as they are stored once."""
    from safetensors import safe_open

    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                total += size
    return float(total)
