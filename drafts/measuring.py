"""Measures step costs and acceptance of a draft in the real engine: what ``choose`` decides from.

Four engines side by side, asked in turn: plain decoding, checking of draft tokens that cost nothing, and the draft with two
numbers of draft tokens.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drafts.cells import Block, Cell, Condition, blocks_of, conditions_of, histogram, run_cells
from drafts.choosing import Acceptance, Measurements, StepCost, cost_split
from drafts.client import Answer
from drafts.encoding import fitting
from drafts.methods import EngineOptions, Method, draft_method, serving, settle_s, verify_method
from drafts.prompts import Prompt, prompts_hash, read_prompts, sample
from pruning.checkpoint import load_tokenizer
from stages.errors import EngineError
from stages.folders import publish, write_text
from stages.hashing import checkpoint_hash
from stages.progress import log
from stages.provenance import Run, up_to_date
from stages.settings import Settings

FILE = "measurements.json"
ALL = "all"
"""Kind of the conditions in which prompts of all kinds are asked together."""

Count = Annotated[int, Field(ge=1)]


class MeasureSettings(Settings):
    """How a draft is measured.

    Attributes:
        num_speculative_tokens: the smaller and the larger K that steps are timed at.
        prompts_per_kind: size of the seeded sample that is asked at the first concurrency.
        concurrencies: requests at a time that steps are timed at; at all but the first as many prompts as it takes.
        enforce_eager: whether engines run without compiling; the default compiles on GPUs only.
    """

    num_speculative_tokens: tuple[Count, Count] = (2, 6)
    prompts_per_kind: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=64, ge=2)
    temperatures: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    concurrencies: tuple[Count, ...] = Field(default=(1, 4, 16), min_length=1)
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
        if sorted(set(self.concurrencies)) != list(self.concurrencies):
            raise ValueError(f"concurrencies must be ascending numbers from 1 up, given {list(self.concurrencies)}")
        return self


def step_seconds(answer: Answer) -> float | None:
    """Seconds per engine step after the first token; None for answers with no further step or chunk."""
    steps = answer.speculation.num_drafts if answer.speculation else answer.completion_tokens - 1
    later = answer.e2e_s - answer.ttft_s
    return later / steps if steps > 0 and later > 0 else None


def _steps(cell: Cell) -> list[float]:
    return [seconds for answer in cell.answers if (seconds := step_seconds(answer)) is not None]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile.

    Raises:
        EngineError: fewer than two values.
    """
    if len(values) < 2:
        raise EngineError("measuring: fewer than two answers had more than one token; use longer answers")
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def relative_steps(own: Sequence[Cell], plain: Sequence[Cell]) -> list[float]:
    """Every answer's step over plain's median step of the same turn, which stood next to it in time."""
    base = {cell.turn: statistics.median(steps) for cell in plain if (steps := _steps(cell))}
    return [seconds / base[cell.turn] for cell in own if cell.turn in base for seconds in _steps(cell)]


def step_costs(
    cells: Sequence[Cell], concurrency: int, engines: dict[str, tuple[Literal["plain", "verify", "draft"], int]]
) -> list[StepCost]:
    """Step costs at one concurrency: plain's median, and the others' as their median ratio to it, turn by turn.

    So a machine whose speed drifts changes plain's cost, but hardly what a draft gains.
    """
    same = [cell for cell in cells if cell.condition.concurrency == concurrency]
    plain = [cell for cell in same if cell.method == "plain"]
    base = quartiles([seconds for cell in plain for seconds in _steps(cell)])
    costs = []
    for engine, (method, tokens) in engines.items():
        own = [cell for cell in same if cell.method == engine]
        found = base if engine == "plain" else tuple(base[1] * q for q in quartiles(relative_steps(own, plain)))
        low, middle, high = found
        costs.append(
            StepCost(
                method=method,
                concurrency=concurrency,
                num_speculative_tokens=tokens,
                seconds=middle,
                low=low,
                high=high,
            )
        )
    return costs


def acceptances(cells: Sequence[Cell]) -> tuple[Acceptance, ...]:
    """One acceptance histogram for each kind of prompt and temperature, over all concurrencies."""
    by_condition: dict[tuple[str, float], list[Answer]] = {}
    for cell in cells:
        for answer in cell.answers:
            by_condition.setdefault((answer.kind, cell.condition.temperature), []).append(answer)
    return tuple(
        Acceptance(kind=kind, temperature=temperature, histogram=tuple(histogram(answers)))
        for (kind, temperature), answers in sorted(by_condition.items())
    )


WAVES = 2
"""How often as many requests as a batch holds are sent at once, in each repeat."""


def blocks_for(prompts: Sequence[Prompt], settings: MeasureSettings) -> list[Block]:
    """At the first concurrency a sample of every kind, each prompt by itself; at the others waves of all prompts, mixed.

    The requests of a wave are sent at once: one that came later would have its prompt read between two steps of the others,
    which would count as a longer step. Few prompts are asked again with other seeds, so that a wave is full. With a draft the
    wave thins out as answers end at different steps, plain's ends at once: steps with a draft come out a little too short.
    """
    first, *others = settings.concurrencies
    alone = sample(list(prompts), settings.prompts_per_kind, settings.seed)
    blocks = blocks_of(
        alone, conditions_of(alone, [first], settings.temperatures), settings.repeats, first, settings.seed
    )
    asked = cycle(random.Random(settings.seed).sample(list(prompts), len(prompts)))
    for repeat in range(settings.repeats):
        for concurrency in others:
            for wave in range(WAVES):
                together, seed = tuple(islice(asked, concurrency)), settings.seed + 10_000 * repeat + 1_000 * wave
                blocks += [Block(Condition(ALL, concurrency, t), together, seed) for t in settings.temperatures]
    return blocks


def found_in(cells: Sequence[Cell], settings: MeasureSettings) -> Measurements:
    """Step costs at every concurrency, and acceptance by kind with the larger number of draft tokens."""
    small, large = settings.num_speculative_tokens
    engines: dict[str, tuple[Literal["plain", "verify", "draft"], int]] = {
        "plain": ("plain", 0), "verify": ("verify", large), "draft-small": ("draft", small), "draft-large": ("draft", large),
    }  # fmt: skip
    costs = [cost for n in settings.concurrencies for cost in step_costs(cells, n, engines)]
    judged = [cell for cell in cells if cell.method == "draft-large"]
    return Measurements(enforce_eager=settings.enforce_eager, costs=tuple(costs), acceptances=acceptances(judged))


def measure(target: Path, draft: Path, prompts_file: Path, out: Path, settings: MeasureSettings) -> None:
    """Writes ``out/measurements.json``: step costs at several batch sizes, and acceptance by position."""
    prompts = fitting(read_prompts(prompts_file), load_tokenizer(target), settings.max_model_len, settings.max_tokens)
    inputs = {"target": checkpoint_hash(target), "draft": checkpoint_hash(draft), "prompts": prompts_hash(prompts)}
    run = Run("measure", settings.model_dump(mode="json"), inputs, settings.seed)
    if up_to_date(run, out):
        return
    small, large = settings.num_speculative_tokens
    drafted = [draft_method(draft, small, "draft-small"), draft_method(draft, large, "draft-large")]
    methods = [Method("plain"), verify_method(large), *drafted]
    with publish(out, stage=run.stage) as folder:
        how = EngineOptions(settings.max_model_len, 2 * settings.concurrencies[-1], settings.enforce_eager)
        with serving(target, methods, out.parent / "engine-logs", how) as served:
            cells = run_cells(served.urls, blocks_for(prompts, settings), settings.max_tokens, settle_s())
        found = found_in(cells, settings)
        write_text(folder / FILE, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
        run.write(folder)
    for n in settings.concurrencies:
        log(_told(found, n))


def _told(found: Measurements, concurrency: int) -> str:
    """Step costs at one concurrency in a line."""
    steps = [
        f"K={cost.num_speculative_tokens}: {1000 * cost.seconds:.1f}"
        for cost in found.costs
        if cost.concurrency == concurrency and cost.method != "verify"
    ]
    split = cost_split(found.costs, concurrency)
    shares = f"; v = {split.verify:.2f}, c = {split.draft:.3f} plain steps" if split else ""
    return f"{concurrency} at a time: ms/step at {', '.join(steps)}{shares}"
