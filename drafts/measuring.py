"""Measures step costs and acceptance of a draft in the real engine: what ``choose`` decides from."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from drafts.cells import Cell, conditions_of, histogram, run_cells
from drafts.choosing import Acceptance, Measurements, StepCost
from drafts.client import Answer, Sampling
from drafts.encoding import fitting
from drafts.methods import EngineOptions, Method, draft_method, serving, settle_s
from drafts.prompts import prompts_hash, read_prompts, sample
from pruning.checkpoint import load_tokenizer
from stages.errors import EngineError
from stages.folders import publish, write_text
from stages.hashing import checkpoint_hash
from stages.progress import log
from stages.provenance import Run, up_to_date
from stages.settings import Settings

FILE = "measurements.json"
Count = Annotated[int, Field(ge=1)]


class MeasureSettings(Settings):
    """How a draft is measured.

    Attributes:
        num_speculative_tokens: the smaller and the larger K that steps are timed at.
        prompts_per_kind: size of the seeded sample; use prompts that neither training nor the final tables see.
        enforce_eager: whether engines run without compiling; the default compiles on GPUs only.
    """

    num_speculative_tokens: tuple[Count, Count] = (2, 6)
    prompts_per_kind: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=64, ge=2)
    temperatures: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    concurrency: int = Field(default=1, ge=1)
    repeats: int = Field(default=2, ge=1)
    seed: int = 0
    max_model_len: int = Field(default=512, ge=16)
    enforce_eager: bool | None = None

    @model_validator(mode="after")
    def _two_different(self) -> Self:
        small, large = self.num_speculative_tokens
        if small >= large:
            raise ValueError(
                f"num_speculative_tokens must be two ascending numbers from 1 up, given [{small}, {large}]"
            )
        return self


def step_seconds(answer: Answer) -> float | None:
    """Seconds per engine step after the first token; None for answers with no further step or chunk."""
    steps = answer.speculation.num_drafts if answer.speculation else answer.completion_tokens - 1
    later = answer.e2e_s - answer.ttft_s
    return later / steps if steps > 0 and later > 0 else None


def step_cost(cells: Sequence[Cell], num_speculative_tokens: int) -> StepCost:
    """Median step over all answers, with the quartiles as spread."""
    values = [s for cell in cells for answer in cell.answers if (s := step_seconds(answer)) is not None]
    if len(values) < 2:
        raise EngineError("measuring: fewer than two answers had more than one token; use longer answers")
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return StepCost(num_speculative_tokens=num_speculative_tokens, seconds=middle, low=low, high=high)


def acceptances(cells: Sequence[Cell]) -> tuple[Acceptance, ...]:
    """One acceptance histogram for each kind and temperature."""
    keys = dict.fromkeys((cell.condition.kind, cell.condition.temperature) for cell in cells)
    found = []
    for kind, temperature in keys:
        same = [c for c in cells if (c.condition.kind, c.condition.temperature) == (kind, temperature)]
        counts = histogram([answer for cell in same for answer in cell.answers])
        found.append(Acceptance(kind=kind, temperature=temperature, histogram=tuple(counts)))
    return tuple(found)


def measure(target: Path, draft: Path, prompts_file: Path, out: Path, settings: MeasureSettings) -> None:
    """Writes ``out/measurements.json``: plain and speculative step costs, and acceptance by position."""
    fit = fitting(read_prompts(prompts_file), load_tokenizer(target), settings.max_model_len, settings.max_tokens)
    prompts = sample(fit, settings.prompts_per_kind, settings.seed)
    inputs = {"target": checkpoint_hash(target), "draft": checkpoint_hash(draft), "prompts": prompts_hash(prompts)}
    run = Run("measure", settings.model_dump(mode="json"), inputs, settings.seed)
    if up_to_date(run, out):
        return
    small, large = settings.num_speculative_tokens
    methods = [Method("plain"), draft_method(draft, small, "draft-small"), draft_method(draft, large, "draft-large")]
    with publish(out, stage=run.stage) as folder:
        how = EngineOptions(settings.max_model_len, 2 * settings.concurrency, settings.enforce_eager)
        with serving(target, methods, out.parent / "engine-logs", how) as urls:
            conditions = conditions_of(prompts, [settings.concurrency], settings.temperatures)
            sampling = Sampling(settings.max_tokens, seed=settings.seed)
            cells = run_cells(
                urls, prompts, conditions, sampling, settings.repeats, settings.prompts_per_kind, settle_s()
            )
        of = {method.name: [cell for cell in cells if cell.method == method.name] for method in methods}
        costs = (step_cost(of["plain"], 0), step_cost(of["draft-small"], small), step_cost(of["draft-large"], large))
        found = Measurements(
            concurrency=settings.concurrency, enforce_eager=settings.enforce_eager,
            costs=costs, acceptances=acceptances(of["draft-large"]),
        )  # fmt: skip
        write_text(folder / FILE, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
        run.write(folder)
    log(", ".join(f"K={c.num_speculative_tokens}: {1000 * c.seconds:.1f} ms/step" for c in costs))
