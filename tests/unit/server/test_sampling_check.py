"""The black-box check against a small HTTP engine that samples as it says, or otherwise."""

from __future__ import annotations

import json
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from server.sampling_check import CLASSES, SAMPLINGS, Sampling, SamplingCheck, check_engine, measure_sampling
from stages.errors import CheckFailed, EngineError

VOCAB = 40


def made_up(seed: int) -> tuple[list[float], float]:
    """Logits in descending order, and the logarithm of the sum of their exponentials."""
    chance = random.Random(seed)
    logits = sorted((chance.gauss(0, 2) for _ in range(VOCAB)), reverse=True)
    return logits, math.log(sum(map(math.exp, logits)))


LOGITS = [made_up(seed) for seed in range(50)]
DEFAULTS = {"top_k": 5, "top_p": 0.8, "presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.1}
"""As an engine takes them from a model's generation_config.json where a request leaves them out."""
NO_PENALTY = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}


class Sampler:
    """Draws tokens from made-up logits; divides them by ``temperature_bug`` too, and may ignore top-k."""

    def __init__(self, temperature_bug: float = 1.0, ignore_top_k: bool = False, logprobs: bool = True, seed: int = 0):
        self.temperature_bug, self.ignore_top_k, self.logprobs = temperature_bug, ignore_top_k, logprobs
        self.chance, self.lock = random.Random(seed), threading.Lock()

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            return {"choices": [self._choice(body) for _ in range(body["n"])]}

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.logprobs:
            return {"text": "", "logprobs": None}
        tokens, tops = zip(*(self._step(body) for _ in range(body["max_tokens"])), strict=True)
        return {"logprobs": {"tokens": list(tokens), "top_logprobs": list(tops)}}

    def _step(self, body: dict[str, Any]) -> tuple[str, dict[str, float]]:
        logits, total = LOGITS[self.chance.randrange(len(LOGITS))]
        body = {**DEFAULTS, **body}
        assert {key: body[key] for key in NO_PENALTY} == NO_PENALTY
        assert body["top_p"] > 0.99
        kept = body["top_k"] if body["top_k"] and not self.ignore_top_k else VOCAB
        weights = [
            math.exp((value - logits[0]) / body["temperature"] / self.temperature_bug) for value in logits[:kept]
        ]
        drawn = self.chance.choices(range(kept), weights)[0]
        shown = {*range(body["logprobs"]), drawn}
        return f"token_id:{drawn}", {f"token_id:{rank}": logits[rank] - total for rank in shown}


@contextmanager
def serve(sampler: Sampler, api_key: str | None = None) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, b'{"data": [{"id": "model"}]}')

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = api_key is None or self.headers["Authorization"] == f"Bearer {api_key}"
            self._answer(*((200, json.dumps(sampler.complete(body)).encode()) if known else (401, b"who is there?")))

        def _answer(self, status: int, answer: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failures(rate: float, runs: int) -> int:
    with serve(Sampler()) as url:
        checks = [measure_sampling(url, "m", num_sequences=4, num_tokens=8, false_alarm_rate=rate) for _ in range(runs)]
    return sum(not check.passed for check in checks)


def test_an_engine_that_samples_as_it_says_passes() -> None:
    with serve(Sampler()) as url:
        check = check_engine(url, "m")
    assert check.passed
    assert check.num_tokens == 2 * 4 * 12 * 31


def test_everything_that_an_engine_could_take_from_elsewhere_is_sent() -> None:
    assert Sampling(1.0).request() == {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **NO_PENALTY}
    assert Sampling(0.6, 10).request() == {"temperature": 0.6, "top_k": 10, "top_p": 0.9999, **NO_PENALTY}


def test_an_engine_that_asks_for_a_key_gets_it() -> None:
    with serve(Sampler(), api_key="ours") as url:
        assert check_engine(url, "m", api_key="ours").passed
        with pytest.raises(EngineError, match="answered 401: who is there"):
            check_engine(url, "m")


def test_the_check_goes_past_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with serve(Sampler()) as url:
        assert check_engine(url, "m", num_tokens=4).passed


def test_right_engines_fail_less_often_than_stated() -> None:
    assert failures(rate=0.2, runs=30) <= 3


def test_the_rate_is_shared_out_before_the_first_look() -> None:
    with serve(Sampler()) as url:
        check = measure_sampling(url, "m", num_tokens=4, false_alarm_rate=0.08)
    assert len(check.deviations) == len(SAMPLINGS) * len(CLASSES) == 8
    first = SamplingCheck(check.deviations[:4], 0.08)
    for seen in (check, first):
        assert f"± {seen.worst.allowed(0.01):.0f} (nominal false-alarm rate 0.08)" in seen.line()


@pytest.mark.parametrize("bug", [0.01, 0.6, 2.0, 1e9])
def test_wrong_temperatures_are_found_out_in_one_line(bug: float) -> None:
    with serve(Sampler(temperature_bug=bug)) as url, pytest.raises(CheckFailed, match="does not sample") as caught:
        check_engine(url, "m")
    assert "\n" not in str(caught.value)
    assert "temperature 1," in str(caught.value)


def test_a_lost_top_k_is_found_out() -> None:
    with serve(Sampler(ignore_top_k=True)) as url, pytest.raises(CheckFailed, match=r"at temperature 0\.6"):
        check_engine(url, "m")


def test_an_engine_without_log_probabilities_cannot_be_checked() -> None:
    with serve(Sampler(logprobs=False)) as url, pytest.raises(EngineError, match="no log-probabilities"):
        check_engine(url, "m")


def test_nobody_there_is_an_engine_error() -> None:
    with pytest.raises(EngineError, match="did not answer"):
        check_engine("http://127.0.0.1:9", "m", timeout_s=2)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [((0.0, -1.0, -2.0), (0.88, 0.12, 0.0)), ((0.0, -1.0, -1.0), (0.787, 0.106, 0.106))],
)
def test_top_k_keeps_ties_with_the_last_token(logprobs: Sequence[float], expected: Sequence[float]) -> None:
    assert Sampling(0.5, top_k=2).probabilities(logprobs) == pytest.approx(expected, abs=1e-3)
