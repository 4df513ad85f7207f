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

from server.sampling_check import Sampling, check_engine, measure_sampling
from stages.errors import CheckFailed, EngineError

VOCAB = 40


def made_up(seed: int) -> tuple[list[float], float]:
    """Logits in descending order, and the logarithm of the sum of their exponentials."""
    chance = random.Random(seed)
    logits = sorted((chance.gauss(0, 2) for _ in range(VOCAB)), reverse=True)
    return logits, math.log(sum(map(math.exp, logits)))


LOGITS = [made_up(seed) for seed in range(50)]


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
        kept = body["top_k"] if body.get("top_k") and not self.ignore_top_k else VOCAB
        weights = [
            math.exp((value - logits[0]) / body["temperature"] / self.temperature_bug) for value in logits[:kept]
        ]
        drawn = self.chance.choices(range(kept), weights)[0]
        shown = {*range(body["logprobs"]), drawn}
        return f"token_id:{drawn}", {f"token_id:{rank}": logits[rank] - total for rank in shown}


@contextmanager
def serve(sampler: Sampler) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(sampler.complete(body)).encode()
            self.send_response(200)
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
    failed = 0
    for seed in range(runs):
        with serve(Sampler(seed=seed)) as url:
            failed += not measure_sampling(url, "m", num_sequences=4, num_tokens=8, false_alarm_rate=rate).passed
    return failed


def test_an_engine_that_samples_as_it_says_passes() -> None:
    with serve(Sampler()) as url:
        check = check_engine(url, "m")
    assert check.passed
    assert check.num_tokens == 2 * 4 * 12 * 31


def test_the_stated_false_alarm_rate_is_a_bound() -> None:
    assert failures(rate=0.2, runs=12) <= 7


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
