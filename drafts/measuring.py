"""Measures step costs and acceptance of a draft in the real engine: what ``choose`` decides from.

Engines side by side, asked in turn: plain decoding, checking of draft tokens that cost nothing, and the draft with two numbers of
draft tokens; for a draft that was trained to propose several tokens in one pass, two more that let it; where the engine's own
proposer runs the draft, one more of each way that proposes nothing, which is not free there; and suffix decoding, which needs no
draft and has no line of costs: how many tokens it proposes changes from step to step, so it is timed as a whole.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from drafts.asking import Asking, ask_methods
from drafts.blocks import Block, Cell, Condition, blocks_of, conditions_of
from drafts.cells import histogram
from drafts.client import Answer
from drafts.encoding import fitting
from drafts.measurements import ALL, Acceptance, FirstToken, Measurements, StepCost, Stepping, Way
from drafts.methods import (
    SUFFIX,
    EngineOptions,
    Method,
    draft_method,
    drafted_directly,
    proposes_in_parallel,
    verify_method,
    wants_suffix,
)
from drafts.predicting import cost_split
from drafts.prompts import Prompt, prompts_hash, read_prompts, sample
from drafts.saved_cells import SavedCells
from drafts.served import served
from drafts.trained_on import identified, refuse_known
from pruning.checkpoint import load_tokenizer
from stages.errors import EngineError
from stages.folders import publish, write_text
from stages.hashing import checkpoint_hash
from stages.progress import log
from stages.provenance import Run, hardware, up_to_date, versions
from stages.settings import Settings

FILE = "measurements.json"

SUFFIX_NAME = "suffix"

Count = Annotated[int, Field(ge=1)]


class MeasureSettings(Settings):
    """How a draft is measured.

    Attributes:
        num_speculative_tokens: the smaller and the larger K that steps are timed at.
        prompts_per_kind: size of the seeded sample that is asked at the first concurrency.
        concurrencies: requests at a time that steps are timed at; at all but the first as many prompts as it takes.
        enforce_eager: whether engines run without compiling; the default compiles on GPUs only.
        engine_args: further arguments of all engines; the pair is served with them too.
        suffix: whether suffix decoding is measured too; the default does so where its package, arctic-inference, is installed.
        one_at_a_time: serve one method after the other instead of all side by side, taking turns prompt by prompt. The default does
            so on GPUs, whose memory one engine takes for itself; their speed hardly drifts.
    """

    num_speculative_tokens: tuple[Count, Count] = (2, 6)
    prompts_per_kind: int = Field(default=8, ge=1)
    max_tokens: int = Field(default=64, ge=2)
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.0, 1.0), min_length=1)
    concurrencies: tuple[Count, ...] = Field(default=(1, 4, 8, 16), min_length=1)
    repeats: int = Field(default=2, ge=1)
    seed: int = 0
    max_model_len: int = Field(default=512, ge=16)
    enforce_eager: bool | None = None
    engine_args: tuple[str, ...] = ()
    suffix: bool | None = None
    one_at_a_time: bool | None = None

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


def plain_step_seconds(answer: Answer) -> float | None:
    """Seconds per engine step of plain decoding after the first token; None for answers with no further step or chunk."""
    steps, later = answer.completion_tokens - 1, answer.e2e_s - answer.ttft_s
    return later / steps if steps > 0 and later > 0 else None


def step_in_plain_steps(answer: Answer, plain_s: float) -> float | None:
    """A step with draft tokens over a plain one of ``plain_s`` seconds; None for answers that do not tell.

    Not every step of an answer has draft tokens: our proposer gives none to answers that begin together, nor for the last token
    of one. Each step brings a token and those it accepts, so what is missing in the engine's count of drafted steps was plain. An
    answer without any draft token gives its own plain step.
    """
    later, record = (answer.e2e_s - answer.ttft_s) / plain_s, answer.speculation
    drafted, accepted = (record.num_drafts, record.num_accepted_tokens) if record else (0, 0)
    others = answer.completion_tokens - 1 - accepted - drafted
    found = (later - max(others, 0)) / drafted if drafted else later / others if others > 0 else 0.0
    return found if found > 0 else None


def _plain_steps(cell: Cell) -> list[float]:
    return [seconds for answer in cell.answers if (seconds := plain_step_seconds(answer)) is not None]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile.

    Raises:
        EngineError: fewer than two values.
    """
    if len(values) < 2:
        raise EngineError("measuring: fewer than two answers had more than one token; use longer answers")
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def relative_to_plain(
    own: Sequence[Cell],
    plain: Sequence[Cell],
    plain_values: Callable[[Cell], Sequence[float]],
    relative: Callable[[Answer, float], float | None],
) -> list[float]:
    """Every answer beside plain's median of the same turn, which stood next to it in time.

    Args:
        plain_values: what plain's answers of a cell have.
        relative: what an answer has, in units of its second argument; None for one that does not tell.
    """
    base = {cell.turn: statistics.median(values) for cell in plain if (values := plain_values(cell))}
    found = (relative(answer, base[cell.turn]) for cell in own if cell.turn in base for answer in cell.answers)
    return [value for value in found if value is not None]


def step_costs(cells: Sequence[Cell], concurrency: int, engines: dict[str, tuple[Stepping, int]]) -> list[StepCost]:
    """Step costs at one concurrency: plain's median, and the others' as their median ratio to it, turn by turn.

    So a machine whose speed drifts changes plain's cost, but hardly what a draft gains.
    """
    same = [cell for cell in cells if cell.condition.concurrency == concurrency]
    plain = [cell for cell in same if cell.method == "plain"]
    base = quartiles([seconds for cell in plain for seconds in _plain_steps(cell)])
    costs = []
    for engine, (method, tokens) in engines.items():
        own = [cell for cell in same if cell.method == engine]
        low, middle, high = base
        if engine != "plain":
            ratios = relative_to_plain(own, plain, _plain_steps, step_in_plain_steps)
            low, middle, high = (base[1] * ratio for ratio in quartiles(ratios))
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


def first_tokens(cells: Sequence[Cell], engine: str, method: Literal["plain", "draft", "parallel"]) -> list[FirstToken]:
    """For each kind of prompt the time to the first token at the lowest concurrency, and how many follow it in plain decoding."""
    lowest = min(cell.condition.concurrency for cell in cells)
    alone = [cell for cell in cells if cell.condition.concurrency == lowest]
    kinds = dict.fromkeys(cell.condition.kind for cell in alone)
    return [_first_token([c for c in alone if c.condition.kind == kind], engine, method, kind) for kind in kinds]


def _first_token(
    alone: Sequence[Cell], engine: str, method: Literal["plain", "draft", "parallel"], kind: str
) -> FirstToken:
    plain = [cell for cell in alone if cell.method == "plain"]
    base = statistics.median(_first_tokens_of(plain))
    own = [cell for cell in alone if cell.method == engine]
    ratios = relative_to_plain(
        own, plain, lambda cell: _first_tokens_of([cell]), lambda answer, seconds: answer.ttft_s / seconds
    )
    later = statistics.mean(answer.completion_tokens - 1 for cell in plain for answer in cell.answers)
    return FirstToken(method=method, kind=kind, seconds=base * statistics.median(ratios), later_tokens=max(later, 1.0))


def _first_tokens_of(cells: Sequence[Cell]) -> list[float]:
    return [answer.ttft_s for cell in cells for answer in cell.answers]


def acceptances(cells: Sequence[Cell], way: Way) -> tuple[Acceptance, ...]:
    """One acceptance histogram for each kind of prompt and temperature, over all concurrencies."""
    by_condition: dict[tuple[str, float], list[Answer]] = {}
    for cell in cells:
        for answer in cell.answers:
            by_condition.setdefault((answer.kind, cell.condition.temperature), []).append(answer)
    return tuple(
        Acceptance(kind=kind, temperature=temperature, histogram=tuple(histogram(answers)), way=way)
        for (kind, temperature), answers in sorted(by_condition.items())
    )


WAVES = 2
"""How often as many requests as a batch holds are sent at once, in each repeat."""


def blocks_for(prompts: Sequence[Prompt], settings: MeasureSettings) -> list[Block]:
    """At the first concurrency a sample of every kind, each prompt by itself; at the others waves of all prompts, mixed.

    The requests of a wave are sent at once: one that came later would have its prompt read between two steps of the others,
    which would count as a longer step. Few prompts are asked again with other seeds, so that a wave is full. With a draft the
    wave thins out as answers end at different steps, plain's ends at once: steps with a draft come out a little too short.
    What suffix decoding remembers is forgotten before each wave.
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
                blocks += [
                    Block(Condition(ALL, concurrency, t), together, seed, repeat * WAVES + wave)
                    for t in settings.temperatures
                ]
    return blocks


def found_in(cells: Sequence[Cell], settings: MeasureSettings, ways: Sequence[Way]) -> Measurements:
    """Step costs at every concurrency, acceptance with the larger number of tokens by way of drafting, and suffix decoding."""
    small, large = settings.num_speculative_tokens
    engines: dict[str, tuple[Stepping, int]] = {"plain": ("plain", 0), "verify": ("verify", large)}
    for way in ways:
        engines |= {f"{way}-small": (way, small), f"{way}-large": (way, large)}
        if any(cell.method == f"{way}-none" for cell in cells):
            engines[f"{way}-none"] = (way, 0)
    costs = [cost for n in settings.concurrencies for cost in step_costs(cells, n, engines)]
    judged = {way: [cell for cell in cells if cell.method == f"{way}-large"] for way in ways}
    firsts = first_tokens(cells, "plain", "plain")
    firsts += [found for way in ways for found in first_tokens(cells, f"{way}-large", way)]
    splits = [split for way in ways for n in settings.concurrencies if (split := cost_split(costs, n, way))]
    if settings.concurrencies[0] > 1:  # a first token that has waited for other prompts does not say what one costs
        firsts = []
    return Measurements(
        enforce_eager=settings.enforce_eager, engine_args=settings.engine_args, costs=tuple(costs), first_tokens=tuple(firsts),
        acceptances=tuple(found for way in ways for found in acceptances(judged[way], way)),
        splits=tuple(splits), served=served(cells, SUFFIX_NAME, SUFFIX["num_speculative_tokens"]),
    )  # fmt: skip


def methods_in(draft: Path, way: Way, settings: MeasureSettings, how: EngineOptions) -> list[Method]:
    """A draft with two numbers of tokens, and with none where our own proposer does not run it."""
    options = {"parallel_drafting": True} if way == "parallel" else {}
    small, large = settings.num_speculative_tokens
    found = [
        draft_method(draft, tokens, f"{way}-{size}", **options) for size, tokens in (("small", small), ("large", large))
    ]
    if not drafted_directly(found[0], how):
        nothing = {"num_speculative_tokens_per_batch_size": [[1, how.max_num_seqs, 0]]}
        found.append(draft_method(draft, small, f"{way}-none", **options, **nothing))
    return found


def measure(target: Path, draft: Path, prompts_file: Path, out: Path, settings: MeasureSettings) -> None:
    """Writes ``out/measurements.json``: step costs at several batch sizes, acceptance by position, suffix decoding's speed-ups.

    Raises:
        InputError: the draft was trained on one of the prompts.
    """
    settings = settings.model_copy(update={"suffix": wants_suffix(settings.suffix)})
    everything = read_prompts(prompts_file)
    refuse_known(identified(everything), draft)
    prompts = fitting(everything, load_tokenizer(target), settings.max_model_len, settings.max_tokens)
    inputs = {"target": checkpoint_hash(target), "draft": checkpoint_hash(draft), "prompts": prompts_hash(prompts)}
    run = Run("measure", settings.model_dump(mode="json"), inputs, settings.seed)
    if up_to_date(run, out):
        return
    how = EngineOptions(
        settings.max_model_len, 2 * settings.concurrencies[-1], settings.enforce_eager, settings.engine_args
    )
    ways: list[Way] = ["draft", "parallel"] if proposes_in_parallel(draft) else ["draft"]
    drafted = [method for way in ways for method in methods_in(draft, way, settings, how)]
    methods = [Method("plain"), verify_method(settings.num_speculative_tokens[1]), *drafted]
    if settings.suffix:
        methods.append(Method(SUFFIX_NAME, SUFFIX))
    with publish(out, stage=run.stage) as folder:
        asked = Asking(tuple(blocks_for(prompts, settings)), settings.max_tokens, settings.one_at_a_time)
        saved = SavedCells(out.parent / f".{out.name}.cells.jsonl", [run.identity, versions(), hardware()])
        cells = ask_methods(target, methods, asked, out.parent / "engine-logs", how, saved)
        found = found_in(cells, settings, ways)
        write_text(folder / FILE, json.dumps(found.model_dump(mode="json"), indent=2) + "\n")
        run.write(folder)
    saved.clear()
    for n in settings.concurrencies:
        log(_told(found, n))


def _setting(cost: StepCost) -> str:
    """What a step was timed with."""
    if cost.method == "plain":
        return "plain"
    way = " in one pass" if cost.method == "parallel" else ""
    return f"K={cost.num_speculative_tokens}{way}" if cost.num_speculative_tokens else f"nothing drafted{way}"


def _told(found: Measurements, concurrency: int) -> str:
    """Step costs at one concurrency in a line."""
    steps = [
        f"{_setting(cost)}: {1000 * cost.seconds:.1f}"
        for cost in found.costs
        if cost.concurrency == concurrency and cost.method != "verify"
    ]
    split = cost_split(found.costs, concurrency)
    shares = (
        f"; v = {split.verify:.2f} ({split.verify_low:.2f} to {split.verify_high:.2f}), "
        f"c = {split.draft:.3f} ({split.draft_low:.3f} to {split.draft_high:.3f}) plain steps"
        if split
        else ""
    )
    speedups = [f"{s.speedup:.2f}x" for s in found.served if s.concurrency == concurrency]
    beside = f"; suffix decoding {', '.join(speedups)}" if speedups else ""
    return f"{concurrency} at a time: ms/step at {', '.join(steps)}{shares}{beside}"
