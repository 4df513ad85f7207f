"""Verifying without an engine: the judgements on outputs that transformers made, right and wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from drafts import verifying
from drafts.distribution import OTHER, Prefix
from drafts.exact import Difference, ExactTarget, rounding_dtype, rounding_step
from drafts.verdict import GreedyResult, SampledResult, VerifyReport
from drafts.verifying import (
    Prompted,
    VerifySettings,
    compare_greedy,
    judge_samples,
    passed_or_raise,
    read_prompted,
    verify,
)
from pruning.checkpoint import load_model
from server.engine_command import EngineSettings
from server.pair import read_pair
from server.sampling_check import SAMPLINGS, Deviation, SamplingCheck
from stages.errors import CheckFailed, InputError
from tests.integration.pico_pair import write_pairs

PROMPT = Prompted("first", (5, 6, 7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def target(folder: Path) -> ExactTarget:
    return ExactTarget(folder / "target")


def settings_for(folder: Path, **changes: Any) -> VerifySettings:
    return VerifySettings(prompts=folder / "prompts.jsonl", log_folder=folder / "logs", **changes)


def draw(folder: Path, temperature: float, count: int, judged_temperature: float | None = None) -> list[Prefix]:
    """Samples of four tokens in bfloat16; ``judged_temperature`` divides the logits of all tokens but the first."""
    torch.manual_seed(0)
    model, texts = load_model(folder / "target", "bfloat16"), torch.tensor([PROMPT.tokens] * count)
    for position in range(4):
        with torch.inference_mode():
            logits = model(texts).logits[:, -1].double()
        used = temperature if position == 0 or judged_temperature is None else judged_temperature
        texts = torch.cat([texts, torch.multinomial((logits / used).softmax(-1), 1)], dim=1)
    return [tuple(text[len(PROMPT.tokens) :]) for text in texts.tolist()]


def greedy(folder: Path, length: int) -> Prefix:
    model, text = load_model(folder / "target", "float32"), list(PROMPT.tokens)
    for _ in range(length):
        with torch.inference_mode():
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return tuple(text[len(PROMPT.tokens) :])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_targets_own_samples_pass(folder: Path, target: ExactTarget, temperature: float) -> None:
    samples = draw(folder, temperature, 2048)
    result = judge_samples(target, PROMPT, temperature, samples, settings_for(folder))
    assert result.passed
    assert result.fit.p_value > 1e-3
    assert result.fit.df > 50


@pytest.mark.parametrize("judged_temperature", [0.8, 1.3, 1e-9])
def test_a_wrong_temperature_of_judged_tokens_fails(
    folder: Path, target: ExactTarget, judged_temperature: float
) -> None:
    samples = draw(folder, 1.0, 2048, judged_temperature)
    result = judge_samples(target, PROMPT, 1.0, samples, settings_for(folder))
    assert not result.passed
    assert "DO NOT follow" in result.line()


def test_equal_greedy_outputs_need_no_judgement(folder: Path, target: ExactTarget) -> None:
    output = greedy(folder, 8)
    result = compare_greedy(target, [PROMPT], [output], [output])
    assert result == GreedyResult(1, ())
    assert result.lines() == ["greedy: 1 of 1 outputs equal with and without draft"]


def test_another_token_than_the_targets_is_no_tie(folder: Path, target: ExactTarget) -> None:
    output = greedy(folder, 8)
    wrong = (*output[:3], (output[3] + 1) % 128, *output[4:])
    result = compare_greedy(target, [PROMPT], [output], [wrong])
    ((name, difference),) = result.differences
    assert (name, difference.position, difference.tokens) == ("first", 3, (output[3], wrong[3]))
    assert not result.passed
    assert difference.gap is not None
    assert difference.gap > 2 * difference.rounding > 0
    assert difference.gap == pytest.approx(difference.lag)


def test_an_output_that_ends_before_the_other_is_no_tie(folder: Path, target: ExactTarget) -> None:
    output = greedy(folder, 8)
    for pair, ends in (((output, output[:5]), (output[5], OTHER)), ((output[:5], output), (OTHER, output[5]))):
        result = compare_greedy(target, [PROMPT], [pair[0]], [pair[1]])
        ((_, difference),) = result.differences
        assert (difference.position, difference.tokens, difference.tie) == (5, ends, False)
        assert "one output ends at token 5, the other goes on" in result.lines()[1]
        assert "Infinity" not in json.dumps(asdict(difference))


@pytest.mark.parametrize(("lag", "tie"), [(0.0, True), (0.02, True), (0.021, False), (3.0, False)])
def test_a_tie_lies_within_what_two_runs_can_round(lag: float, tie: bool) -> None:
    assert Difference(0, (1, 2), gap=lag, lag=lag, rounding=0.01).tie == tie


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("value", [1.0, 1.5, 7.9, 8.0, 10.5, -3.0])
def test_a_step_is_the_distance_of_neighbours(value: float, dtype: str) -> None:
    number = torch.tensor(value, dtype=getattr(torch, dtype))
    away = torch.tensor(math.copysign(math.inf, value), dtype=number.dtype)
    assert rounding_step(float(number), dtype) == float((torch.nextafter(number, away) - number).abs())


def test_an_engine_left_to_itself_is_taken_to_round_to_bfloat16() -> None:
    assert [rounding_dtype(name) for name in ("auto", "half", "float32")] == ["bfloat16", "float16", "float32"]


def test_an_engine_in_float32_leaves_far_less_to_rounding(folder: Path, target: ExactTarget) -> None:
    output = greedy(folder, 4)
    other = (*output[:3], (output[3] + 1) % 128)
    rough, fine = (
        t.difference(PROMPT.tokens, output, other) for t in (target, ExactTarget(folder / "target", "float32"))
    )
    assert rough is not None
    assert fine is not None
    assert 0 < fine.rounding < rough.rounding / 1000
    assert fine.lag == pytest.approx(rough.lag, abs=1e-4)


def test_rounding_is_no_less_than_a_step_at_the_best_logit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a short text the deviations may all be small by chance (here: none at all)."""
    target = ExactTarget(folder / "target")
    exact = target._exact
    monkeypatch.setattr(target, "_rounded", exact)
    output = greedy(folder, 1)
    difference = target.difference(PROMPT.tokens, output, ((output[0] + 1) % 128,))
    with torch.inference_mode():
        best = float(exact(torch.tensor([PROMPT.tokens])).logits[0, -1].max())
    assert difference is not None
    assert difference.rounding == rounding_step(best, "bfloat16") > 0


def test_two_equally_bad_tokens_are_no_tie() -> None:
    assert not Difference(0, (1, 2), gap=0.0, lag=5.0, rounding=0.01).tie


def report(folder: Path, target: ExactTarget, **changes: Any) -> VerifyReport:
    sampled = judge_samples(target, PROMPT, 1.0, draw(folder, 1.0, 512), settings_for(folder))
    fine = SamplingCheck((Deviation(SAMPLINGS[0], "of rank 1", 50.0, 52, 25.0, 100),), 1e-6)
    return replace(VerifyReport(GreedyResult(1, ()), (sampled,), fine), **changes)


def test_a_report_without_failures_is_handed_back(folder: Path, target: ExactTarget) -> None:
    found = report(folder, target)
    assert passed_or_raise(found) is found
    assert len(found.lines()) == 3


def test_a_failure_is_one_line(folder: Path, target: ExactTarget) -> None:
    wrong = GreedyResult(1, (("p", Difference(4, (1, 2), 3.0, 3.0, 0.01)),))
    with pytest.raises(CheckFailed, match=r"prompt p differs at token 4: logit gap 3\.0000, NOT a tie") as caught:
        passed_or_raise(report(folder, target, greedy=wrong))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_an_engine_that_contradicts_itself_fails(folder: Path, target: ExactTarget) -> None:
    cold = SamplingCheck((Deviation(SAMPLINGS[0], "of rank 1", 50.0, 100, 25.0, 100),), 1e-6)
    with pytest.raises(CheckFailed, match="100 were of rank 1"):
        passed_or_raise(report(folder, target, self_check=cold))


def test_results_of_several_tests_share_the_false_alarm_rate(folder: Path, target: ExactTarget) -> None:
    settings = settings_for(folder, temperatures=(1.0, 0.5), false_alarm_rate=1e-3)
    result: SampledResult = judge_samples(target, PROMPT, 1.0, draw(folder, 1.0, 512), settings)
    assert result.false_alarm_rate == pytest.approx(5e-4)


def test_certain_continuations_cannot_be_tested(folder: Path, target: ExactTarget) -> None:
    with pytest.raises(InputError, match=r"prompt first: .* at temperature 1e-06 are too certain to be tested"):
        judge_samples(target, PROMPT, 1e-6, [greedy(folder, 4)] * 300, settings_for(folder))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_sampling_at_no_temperature_is_refused(folder: Path, temperature: float) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        settings_for(folder, temperatures=(1.0, temperature))


@pytest.mark.parametrize("eager", [True, False, None])
def test_the_engine_is_compiled_as_the_pair_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, eager: bool | None
) -> None:
    pair = read_pair(folder / "default")
    serving = pair.serving.model_copy(update={"enforce_eager": eager})
    pair = pair.model_copy(update={"serving": serving})
    started: list[EngineSettings] = []

    @contextmanager
    def record(settings: EngineSettings, **_: object) -> Iterator[SimpleNamespace]:
        started.append(settings)
        yield SimpleNamespace(url="http://there")

    monkeypatch.setattr(verifying, "LocalEngine", record)
    with verifying._engine(pair, None, settings_for(folder), "plain") as (url, _):
        assert url == "http://there"
    assert started[0].enforce_eager is eager


def test_prompts_keep_their_ends(folder: Path) -> None:
    pair = read_pair(folder / "default")
    whole = read_prompted(pair, settings_for(folder))
    cut = read_prompted(pair, settings_for(folder, greedy_tokens=254))
    assert [prompt.tokens[-2:] for prompt in whole] == [prompt.tokens for prompt in cut]
    with pytest.raises(InputError, match="greedy_tokens 256: must be below"):
        read_prompted(pair, settings_for(folder, greedy_tokens=256))


def test_a_pair_without_draft_has_nothing_to_verify(folder: Path, tmp_path: Path) -> None:
    serving = json.loads((folder / "default" / "serving.json").read_text())
    (tmp_path / "serving.json").write_text(json.dumps({**serving, "draft": None, "speculative_config": None}))
    with pytest.raises(InputError, match="nothing to verify"):
        verify(tmp_path, settings_for(folder))
