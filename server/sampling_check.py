"""Does a running engine sample what it says it samples? A black-box check over HTTP, in a few seconds.

The engine itself gives, with every token, the log-probabilities of its most likely tokens before temperature and
truncation. If sampling is right, each token is drawn from just that distribution (under speculation too: that is what
lossless means). So the number of sampled tokens that fell in a class of ranks (the most likely token, the next two, …)
minus the sum of the probabilities of that class is a martingale with steps of at most 1 and variance V. By Freedman's
inequality it leaves ``x/3 + sqrt((x/3)^2 + 2 V x)``, x = ln(2 / rate), with a probability of at most ``rate``. The rate
is nominal, because V is summed along the sampled texts instead of being known before. No reference model, no near ties,
no rounding enters, and an engine that divides its logits by uninitialised memory is far outside.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.asking import NO_ANSWER, open_directly, start
from stages.errors import CheckFailed, EngineError

PROMPTS = ("The", "def ", "In the beginning", "import")
"""Short, so that what follows is uncertain: certain tokens show nothing."""

CLASSES = {"of rank 1": (0, 1), "of ranks 2 and 3": (1, 3), "of ranks 4 to 10": (3, 10), "of higher ranks": (10, None)}
"""Where a token's rank lies among the most likely ones: from, to (excluded)."""

NUM_TOP = 20
"""How many log-probabilities are asked for: what engines give by default at most."""

NEUTRAL = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
"""Fields that are always sent, because engines take omitted ones from the model's generation_config.json."""


@dataclass(frozen=True)
class Sampling:
    """One way to sample. ``top_k`` 0 takes the whole vocabulary and then needs temperature 1."""

    temperature: float
    top_k: int = 0

    def request(self) -> dict[str, Any]:
        """The fields of a request; the top-p that goes with top-k removes one token in 10,000 and is not modelled."""
        top_p = 0.9999 if self.top_k else 1.0
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": top_p, **NEUTRAL}

    def probabilities(self, logprobs: Sequence[float]) -> list[float]:
        """Probability of each of the most likely tokens, given their log-probabilities in descending order."""
        if not self.top_k:
            return [math.exp(value) for value in logprobs]
        lowest = logprobs[min(self.top_k, len(logprobs)) - 1]
        weights = [math.exp((value - logprobs[0]) / self.temperature) * (value >= lowest) for value in logprobs]
        return [weight / sum(weights) for weight in weights]


SAMPLINGS = (Sampling(1.0), Sampling(0.6, top_k=10))


@dataclass(frozen=True)
class Deviation:
    """How one class of tokens came out under one way to sample."""

    sampling: Sampling
    ranks: str
    expected: float
    observed: int
    variance: float
    num_tokens: int

    def allowed(self, rate: float) -> float:
        """Largest deviation that a right engine leaves with a probability of at most ``rate``."""
        x = math.log(2 / rate)
        return x / 3 + math.sqrt((x / 3) ** 2 + 2 * self.variance * x)

    def excess(self, rate: float) -> float:
        """Deviation over the allowed one; above 1 the engine is wrong."""
        return abs(self.observed - self.expected) / self.allowed(rate)


@dataclass(frozen=True)
class SamplingCheck:
    """What a check saw.

    Attributes:
        deviations: of the classes under the ways to sample that were looked at.
        false_alarm_rate: nominal chance that a right engine fails; shared out over all ways to sample and all classes,
            so a class is held to the same bound whether or not others have been looked at yet.
    """

    deviations: tuple[Deviation, ...]
    false_alarm_rate: float

    @property
    def worst(self) -> Deviation:
        """The class farthest out."""
        return max(self.deviations, key=lambda deviation: deviation.excess(self._rate))

    @property
    def passed(self) -> bool:
        """Whether every class is within its bound."""
        return self.worst.excess(self._rate) <= 1

    @property
    def num_tokens(self) -> int:
        """Sampled tokens looked at, over all ways to sample."""
        return sum({deviation.sampling: deviation.num_tokens for deviation in self.deviations}.values())

    @property
    def _rate(self) -> float:
        return self.false_alarm_rate / (len(SAMPLINGS) * len(CLASSES))

    def line(self) -> str:
        """One line on the class farthest out."""
        worst = self.worst
        return (
            f"of {worst.num_tokens} tokens at temperature {worst.sampling.temperature:g}, {worst.observed} were "
            f"{worst.ranks}; the engine's own probabilities say {worst.expected:.0f} ± {worst.allowed(self._rate):.0f} "
            f"(nominal false-alarm rate {self.false_alarm_rate:g})"
        )


def check_engine(base_url: str, model: str, **options: Any) -> SamplingCheck:
    """Samples from a running engine, compares with the probabilities it states, and objects.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, without ``/v1``.
        model: served name.
        options: as ``measure_sampling``.

    Raises:
        CheckFailed: the engine samples wrongly.
        EngineError: it cannot be asked, or gives no log-probabilities.
    """
    check = measure_sampling(base_url, model, **options)
    if not check.passed:
        raise CheckFailed(f"the engine at {base_url} does not sample from the model's distribution: {check.line()}")
    return check


def measure_sampling(
    base_url: str,
    model: str,
    num_sequences: int = 12,
    num_tokens: int = 32,
    false_alarm_rate: float = 1e-6,
    timeout_s: float = 120.0,
    api_key: str | None = None,
) -> SamplingCheck:
    """Samples from a running engine and compares with the probabilities it states.

    A way to sample is left out when the one before it was found wrong: such an engine may die of the next request.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, without ``/v1``.
        model: served name.
        num_sequences: continuations of each of the four prompts, for each way to sample.
        num_tokens: tokens of each continuation.
        false_alarm_rate: nominal bound on the chance that a right engine fails.
        timeout_s: for each request.
        api_key: what the engine asks for, if it does.
    """
    ask = partial(complete, base_url, timeout_s=timeout_s, api_key=api_key)
    deviations: list[Deviation] = []
    for sampling in SAMPLINGS:
        steps = _sample(ask, model, sampling, num_sequences, num_tokens)
        deviations += _deviations(sampling, steps)
        check = SamplingCheck(tuple(deviations), false_alarm_rate)
        if not check.passed:
            break
    return check


def complete(base_url: str, body: dict[str, Any], timeout_s: float, api_key: str | None = None) -> dict[str, Any]:
    """Asks an engine for a completion.

    Raises:
        EngineError: it does not answer, or answers with an error.
    """
    url = f"{base_url.rstrip('/')}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    if api_key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        with open_directly(request, timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise EngineError(f"{url} answered {error.code}: {error.read(300).decode(errors='replace')}") from error
    except NO_ANSWER as error:
        raise EngineError(f"{url} did not answer: {error}") from error
    return answer


Ask = Callable[[dict[str, Any]], dict[str, Any]]
"""Gives the engine's answer to the body of a request."""

Step = tuple[str, dict[str, float]]
"""One sampled token and the log-probabilities of the most likely ones (the sampled one among them in any case)."""


def _sample(ask: Ask, model: str, sampling: Sampling, num_sequences: int, num_tokens: int) -> list[Step]:
    """All steps but the first of each continuation: that one is not subject to speculation."""

    def steps_of(prompt: str) -> list[Step]:
        body = {
            "model": model, "prompt": prompt, "n": num_sequences, "max_tokens": num_tokens, "ignore_eos": True,
            "logprobs": NUM_TOP, "return_tokens_as_token_ids": True, **sampling.request(),
        }  # fmt: skip
        return [step for choice in ask(body)["choices"] for step in _steps(choice)]

    under_way = [start(partial(steps_of, prompt)) for prompt in PROMPTS]
    return [step for future in under_way for step in future.result()]


def _steps(choice: dict[str, Any]) -> list[Step]:
    given = choice.get("logprobs") or {}
    tokens, tops = given.get("tokens"), given.get("top_logprobs")
    if not tokens or not tops:
        raise EngineError("the engine gives no log-probabilities, which the sampling check needs")
    return list(zip(tokens[1:], tops[1:], strict=True))


def _deviations(sampling: Sampling, steps: Sequence[Step]) -> list[Deviation]:
    """Observed against expected for each class of ranks. Equal log-probabilities are ranked by token."""
    expected, variance = dict.fromkeys(CLASSES, 0.0), dict.fromkeys(CLASSES, 0.0)
    observed = dict.fromkeys(CLASSES, 0)
    for token, top in steps:
        ranked = sorted(top, key=lambda name: (-top[name], name))[:NUM_TOP]
        probabilities = sampling.probabilities([top[name] for name in ranked])
        rank = ranked.index(token) if token in ranked else NUM_TOP
        for name, (low, high) in CLASSES.items():
            inside = sum(probabilities[low:high]) if high else 1.0 - sum(probabilities[:low])
            inside = min(max(inside, 0.0), 1.0)
            expected[name] += inside
            variance[name] += inside * (1.0 - inside)
            observed[name] += low <= rank < (high or NUM_TOP + 1)
    return [Deviation(sampling, name, expected[name], observed[name], variance[name], len(steps)) for name in CLASSES]
