"""A pico pair in the real engine: verified lossless with the repair, found out without it. Four engine starts."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from drafts.exact import ExactTarget
from drafts.verdict import SampledResult
from drafts.verifying import VerifySettings, judge_samples, read_prompted, sampled_outputs, verify
from server.engine import LocalEngine
from server.engine_command import EngineSettings
from server.in_engine.sampling_repair import SWITCH
from server.launching import launch_single
from server.pair import Pair, read_pair
from server.sampling_check import check_engine, complete
from stages.errors import CheckFailed, EngineError
from tests.integration.conftest import PROJECT
from tests.integration.pico_pair import write_pairs

pytestmark = pytest.mark.engine

CHUNK = 48
"""Tokens of a prompt that these engines read at a time."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module", autouse=True)
def at_hand(engines: None) -> None:
    """Its engines share what they import."""


@pytest.fixture(scope="module")
def exact(pairs: Path) -> ExactTarget:
    return ExactTarget(pairs / "target")


@contextmanager
def engine(pair: Pair, log_file: Path, **environment: str) -> Iterator[str]:
    settings = EngineSettings(
        model=pair.target, served_model_name="pico", speculative_config=pair.speculative_config, max_model_len=256,
        log_file=log_file, environment=environment, max_num_seqs=CHUNK, extra_args=("--max-num-batched-tokens", str(CHUNK)),
    )  # fmt: skip
    with LocalEngine(settings, launch=launch_single()) as running:
        yield running.url


def settings_for(folder: Path, **changes: Any) -> VerifySettings:
    return VerifySettings(prompts=folder / "prompts.jsonl", log_folder=folder / "logs", num_samples=2048, **changes)


def sample_and_judge(
    url: str, pair: Pair, exact: ExactTarget, settings: VerifySettings, temperature: float
) -> SampledResult:
    prompt = read_prompted(pair, settings)[0]
    samples = sampled_outputs(url, "pico", prompt, temperature, settings)
    return judge_samples(exact, prompt, temperature, samples, settings)


def serve_elsewhere(pair: Path, engine_url: str) -> tuple[int, str]:
    """Runs ``serve --engine-url`` until it is ready, asks for an answer and ends it; (exit code, what it said)."""
    command = [sys.executable, "-m", "understudy", "serve", str(pair), "--engine-url", engine_url, "--port", "0"]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "gateway: ready" in line:
            gateway = re.findall(r"gateway: (http\S+) ", "".join(said))[0]
            answer = complete(gateway, {"model": "pico", "prompt": "w5 w6", "max_tokens": 4}, 60)
            assert answer["usage"]["completion_tokens"] >= 1
            process.send_signal(signal.SIGTERM)
    return process.wait(60), "".join(said)


def seeded_in_chunks(url: str) -> int:
    """Asks with a seed and a prompt that is read in three chunks; how many tokens come back."""
    prompt = " ".join(f"w{1 + i % 100}" for i in range(2 * CHUNK + 20))
    asked = {"model": "pico", "prompt": prompt, "seed": 5, "temperature": 1.0, "max_tokens": 8, "ignore_eos": True}
    return int(complete(url, asked, 60)["usage"]["completion_tokens"])


def test_a_repaired_pair_with_probabilistic_drafting_is_lossless(pairs: Path) -> None:
    report = verify(pairs / "probabilistic", settings_for(pairs, temperatures=(1.0, 0.6)))
    print(*report.lines(), sep="\n")
    assert report.passed
    assert report.greedy.num_prompts == 8
    assert all(result.fit.df > 50 and result.detectable < 0.2 for result in report.sampled)


def test_a_repaired_engine_with_default_drafting_samples_right_and_survives_top_k_and_seeds(
    pairs: Path, exact: ExactTarget
) -> None:
    pair = read_pair(pairs / "default")
    with engine(pair, pairs / "default.log") as url:
        result = sample_and_judge(url, pair, exact, settings_for(pairs), 1.0)
        print(result.line(), check_engine(url, "pico").line(), sep="\n")
        answer = complete(
            url, {"model": "pico", "prompt": "w5 w6", "top_k": 5, "temperature": 1.0, "max_tokens": 8}, 60
        )
        tokens = seeded_in_chunks(url)
        served, said = serve_elsewhere(pairs / "default", url)
    assert result.passed
    assert tokens == 8
    assert answer["usage"]["completion_tokens"] >= 1
    assert served == 0, said
    assert "gateway: ready, serving pico" in said


def test_the_engine_as_installed_is_found_out(pairs: Path, exact: ExactTarget) -> None:
    pair = read_pair(pairs / "default")
    with engine(pair, pairs / "installed.log", **{SWITCH: "off"}) as url:
        with pytest.raises(CheckFailed, match="does not sample from the model's distribution") as caught:
            check_engine(url, "pico")
        result = sample_and_judge(url, pair, exact, settings_for(pairs), 1.0)
        refused, said = serve_elsewhere(pairs / "default", url)
        with pytest.raises(EngineError):  # it ends the whole engine
            seeded_in_chunks(url)
    assert refused == CheckFailed.exit_code, said
    assert "does not sample from the model's distribution" in said.splitlines()[-1]
    print(caught.value, result.line(), sep="\n")
    assert "\n" not in str(caught.value)
    assert not result.passed
