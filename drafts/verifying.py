"""Is a pair lossless? Greedy outputs with and without draft, and samples against the target's exact distribution.

Greedy: the same prompts are continued by an engine without and one with the draft. Where the continuations part, the
target's exact logits decide: a gap within what the engine's type rounds is a tie (listed), a larger one is a failure.

Sampled: many short continuations of one prompt fall into cells (``drafts.distribution``) whose probabilities
transformers gives in a type with far more bits; Pearson's chi-square compares. Token 1 follows the prompt and is no draft's
business; tokens 2 and on are judged draft tokens, corrections and bonus tokens. The engine rounds (to bfloat16, say), so its
probabilities differ a little; the test allows four times the noncentrality that transformers' own rounding causes
(twice its deviation). And the check that needs no reference (``server.sampling_check``) is run on the same engine, over
longer texts and with top-k and top-p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from drafts.distribution import Prefix, build_cells, detectable_distance, goodness_of_fit, rounding_noncentrality
from drafts.encoding import prompt_ids
from drafts.exact import ExactTarget, rounding_dtype
from drafts.prompts import read_prompts, sample
from drafts.verdict import GreedyResult, SampledResult, VerifyReport
from pruning.checkpoint import load_tokenizer
from server.engine import LocalEngine
from server.engine_command import EngineSettings
from server.launching import launch_single
from server.pair import Pair, read_pair
from server.sampling_check import NEUTRAL, complete, measure_sampling
from stages.errors import CheckFailed, InputError
from stages.progress import log, progress
from stages.settings import Settings

MODEL = "verify"
"""Name under which the engines serve."""

ROUNDING_ALLOWANCE = 4.0
"""Noncentrality allowed, in multiples of what transformers' rounding causes: twice the deviation, squared."""


Asked = TypeVar("Asked")
Answered = TypeVar("Answered")


class VerifySettings(Settings):
    """How a pair is verified."""

    prompts: Path = Field(description="JSONL of prompts for the greedy comparison; the first is sampled from too")
    prompts_per_kind: int | None = Field(default=8, ge=1, description="a seeded sample of this size; null: all")
    seed: int = 0
    greedy_tokens: int = Field(default=64, ge=1)
    num_samples: int = Field(default=4096, ge=256, description="sampled continuations for each temperature")
    sampled_tokens: int = Field(default=4, ge=2, description="tokens of each; those after the first are judged")
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1.0,), min_length=1)
    false_alarm_rate: float = Field(default=1e-4, gt=0, lt=0.5, description="of all the chi-square tests together")
    power: float = Field(default=0.99, gt=0, lt=1)
    sequences_per_request: int = Field(default=64, ge=1)
    concurrency: int = Field(default=2, ge=1)
    timeout_s: float = Field(default=600.0, gt=0)
    log_folder: Path = Path("build/verify")
    engine_environment: dict[str, str] = Field(default_factory=dict, description="added to the engines' environment")


@dataclass(frozen=True)
class Prompted:
    """A prompt as the engine gets it."""

    name: str
    tokens: Prefix


def verify(pair: Path, settings: VerifySettings) -> VerifyReport:
    """Verifies a pair with real engines, one after the other.

    Args:
        pair: the folder that holds serving.json, or the file.
        settings: prompts, sizes and rates.

    Raises:
        CheckFailed: greedy outputs differ without a tie, or samples do not follow the target's distribution.
        InputError: the pair has no draft, or does not fit together.
    """
    checked = read_pair(pair)
    if checked.speculative_config is None:
        raise InputError(f"{checked.file}: served without a draft, so there is nothing to verify")
    prompts = read_prompted(checked, settings)
    with _engine(checked, None, settings, "plain") as (url, dtype):
        plain = greedy_outputs(url, MODEL, prompts, settings)
    with _engine(checked, checked.speculative_config, settings, "drafted") as (url, dtype):
        drafted = greedy_outputs(url, MODEL, prompts, settings)
        samples = {t: sampled_outputs(url, MODEL, prompts[0], t, settings) for t in settings.temperatures}
        self_check = measure_sampling(url, MODEL)
    target = ExactTarget(checked.target, dtype)
    report = VerifyReport(
        compare_greedy(target, prompts, plain, drafted),
        tuple(judge_samples(target, prompts[0], value, outputs, settings) for value, outputs in samples.items()),
        self_check,
    )
    return passed_or_raise(report)


def passed_or_raise(report: VerifyReport) -> VerifyReport:
    """The report, if it holds no failure.

    Raises:
        CheckFailed: with the first failing line; the whole report goes to the log.
    """
    if report.passed:
        return report
    for line in report.lines():
        log(line)
    raise CheckFailed(f"speculation is not lossless here: {report.failures[0]}")


def read_prompted(pair: Pair, settings: VerifySettings) -> list[Prompted]:
    """The prompts as tokens of the target, their ends kept where they are too long for its context."""
    tokenizer = load_tokenizer(pair.target)
    room = pair.serving.max_model_len - max(settings.greedy_tokens, settings.sampled_tokens)
    if room < 1:
        limit = pair.serving.max_model_len
        raise InputError(f"greedy_tokens {settings.greedy_tokens}: must be below the pair's max_model_len, {limit}")
    chosen = sample(read_prompts(settings.prompts), settings.prompts_per_kind, settings.seed)
    tokens = [prompt_ids(prompt, tokenizer) for prompt in chosen]
    return [Prompted(prompt.id, tuple(ids[-room:])) for prompt, ids in zip(chosen, tokens, strict=True)]


def greedy_outputs(url: str, model: str, prompts: Sequence[Prompted], settings: VerifySettings) -> list[Prefix]:
    """The greedy continuation of each prompt, in order."""
    body = {"temperature": 0.0, "max_tokens": settings.greedy_tokens}

    def ask(prompt: Prompted) -> Prefix:
        (tokens,) = _complete(url, model, prompt.tokens, body, settings.timeout_s)
        return tokens

    return _ask_all("greedy outputs", ask, prompts, settings)


def sampled_outputs(
    url: str, model: str, prompt: Prompted, temperature: float, settings: VerifySettings
) -> list[Prefix]:
    """``num_samples`` short continuations of one prompt."""
    each = settings.sequences_per_request
    sizes = [min(each, settings.num_samples - start) for start in range(0, settings.num_samples, each)]
    body = {"temperature": temperature, "max_tokens": settings.sampled_tokens, "top_p": 1.0, "top_k": 0}

    def ask(size: int) -> list[Prefix]:
        return _complete(url, model, prompt.tokens, {**body, "n": size}, settings.timeout_s)

    return [output for part in _ask_all("samples", ask, sizes, settings) for output in part]


def compare_greedy(
    target: ExactTarget, prompts: Sequence[Prompted], plain: Sequence[Prefix], drafted: Sequence[Prefix]
) -> GreedyResult:
    """Compares continuations without and with draft and judges where they part."""
    triples = zip(prompts, plain, drafted, strict=True)
    found = [(prompt.name, target.difference(prompt.tokens, a, b)) for prompt, a, b in triples]
    return GreedyResult(len(prompts), tuple((name, difference) for name, difference in found if difference))


def judge_samples(
    target: ExactTarget, prompt: Prompted, temperature: float, samples: Sequence[Prefix], settings: VerifySettings
) -> SampledResult:
    """Tests samples of a prompt against the target's exact distribution.

    Raises:
        InputError: the target is so certain of what follows the prompt that there is nothing to test.
    """
    exact = target.next_probabilities(prompt.tokens, temperature)
    rounded = target.next_probabilities(prompt.tokens, temperature, rounded=True)
    cells = build_cells(exact, settings.sampled_tokens, len(samples))
    probabilities = cells.probabilities(exact)
    allowance = ROUNDING_ALLOWANCE * rounding_noncentrality(len(samples), probabilities, cells.probabilities(rounded))
    fit = goodness_of_fit((cells.cell_of(output) for output in samples), probabilities, allowance)
    if not fit.df:
        raise InputError(
            f"prompt {prompt.name}: its continuations at temperature {temperature:g} are too certain to be tested with "
            f"{len(samples)} samples; raise num_samples or temperatures, or put another prompt first"
        )
    rate = settings.false_alarm_rate / len(settings.temperatures)
    detectable = detectable_distance(len(samples), fit.df, rate, settings.power, allowance)
    return SampledResult(temperature, len(samples), fit, allowance, rate, settings.power, detectable)


@contextmanager
def _engine(
    pair: Pair, speculative_config: dict[str, Any] | None, settings: VerifySettings, name: str
) -> Iterator[tuple[str, str]]:
    """A running engine with the pair's target; gives its address and the type that it computes in."""
    engine = EngineSettings(
        model=pair.target, served_model_name=MODEL, speculative_config=speculative_config,
        max_model_len=pair.serving.max_model_len, log_file=settings.log_folder / f"engine-{name}.log",
        environment=settings.engine_environment, enforce_eager=pair.serving.enforce_eager,
        extra_args=pair.serving.engine_args,
    )  # fmt: skip
    log(f"starting the engine ({name})")
    with LocalEngine(engine, launch=launch_single()) as running:
        yield running.url, rounding_dtype(engine.computed_dtype)


def _ask_all(
    what: str, ask: Callable[[Asked], Answered], asked: Sequence[Asked], settings: VerifySettings
) -> list[Answered]:
    """Answers in the order of the questions, ``concurrency`` at a time, with progress."""
    with progress(what, len(asked), "requests") as advance, ThreadPoolExecutor(settings.concurrency) as pool:
        answers = []
        for answer in pool.map(ask, asked):
            answers.append(answer)
            advance()
        return answers


def _complete(url: str, model: str, prompt: Prefix, body: dict[str, Any], timeout_s: float) -> list[Prefix]:
    """The tokens of each continuation; the end of the text is ignored, so that all have one length."""
    asked = {"model": model, "prompt": list(prompt), **body}
    fixed = {"ignore_eos": True, "return_token_ids": True, **NEUTRAL}
    answer = complete(url, {**asked, **fixed}, timeout_s)
    return [tuple(choice["token_ids"]) for choice in answer["choices"]]
