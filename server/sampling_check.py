"""Does a running engine sample what it says it samples? A black-box check over HTTP, in a few seconds.

The engine itself gives, with every token, the log-probabilities of its most likely tokens before temperature and
truncation. If sampling is right, each token is drawn from just that distribution (under speculation too: that is what
lossless means). So the number of sampled tokens that fell in a class of ranks (the most likely token, the next two, …)
minus the sum of the probabilities of that class is a martingale with steps of at most 1 and known variance V. By
Freedman's inequality it leaves ``x/3 + sqrt((x/3)^2 + 2 V x)``, x = ln(2 / rate), with a probability of at most
``rate``. No reference model, no near ties, no rounding enters, and an engine that divides its logits by uninitialised
memory is far outside.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from stages.errors import CheckFailed, EngineError

PROMPTS = ("The", "def ", "In the beginning", "import")
"""Short, so that what follows is uncertain: certain tokens show nothing."""

CLASSES = {"of rank 1": (0, 1), "of ranks 2 and 3": (1, 3), "of ranks 4 to 10": (3, 10), "of higher ranks": (10, None)}
"""Where a token's rank lies among the most likely ones: from, to (excluded)."""

NUM_TOP = 20
"""How many log-probabilities are asked for: what engines give by default at most."""


@dataclass(frozen=True)
class Sampling:
    """One way to sample. ``top_k`` 0 takes the whole vocabulary and then needs temperature 1."""

    temperature: float
    top_k: int = 0

    def request(self) -> dict[str, Any]:
        """The fields of a request; the top-p that goes with top-k removes one token in 10,000 and is not modelled."""
        truncation = {"top_k": self.top_k, "top_p": 0.9999} if self.top_k else {"top_p": 1.0}
        return {"temperature": self.temperature, **truncation}

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
    """What a check saw. ``false_alarm_rate`` bounds the chance that a right engine fails the whole check."""

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
        return self.false_alarm_rate / len(self.deviations)

    def line(self) -> str:
        """One line on the class farthest out."""
        worst = self.worst
        return (
            f"of {worst.num_tokens} tokens at temperature {worst.sampling.temperature:g}, {worst.observed} were "
            f"{worst.ranks}; the engine's own probabilities say {worst.expected:.0f} ± {worst.allowed(self._rate):.0f} "
            f"(false-alarm rate below {self.false_alarm_rate:g})"
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
) -> SamplingCheck:
    """Samples from a running engine and compares with the probabilities it states.

    A way to sample is left out when the one before it was found wrong: such an engine may die of the next request.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000``, without ``/v1``.
        model: served name.
        num_sequences: continuations of each of the four prompts, for each way to sample.
        num_tokens: tokens of each continuation.
        false_alarm_rate: bound on the chance that a right engine fails.
        timeout_s: for each request.
    """
    deviations: list[Deviation] = []
    for sampling in SAMPLINGS:
        steps = _sample(base_url, model, sampling, num_sequences, num_tokens, timeout_s)
        deviations += _deviations(sampling, steps)
        check = SamplingCheck(tuple(deviations), false_alarm_rate)
        if not check.passed:
            break
    return check


def complete(base_url: str, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Asks an engine for a completion.

    Raises:
        EngineError: it does not answer, or answers with an error.
    """
    url = f"{base_url.rstrip('/')}/v1/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        raise EngineError(f"{url} answered {error.code}: {error.read(300).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise EngineError(f"{url} did not answer: {error}") from error
    return answer


Step = tuple[str, dict[str, float]]
"""One sampled token and the log-probabilities of the most likely ones (the sampled one among them in any case)."""


def _sample(
    base_url: str, model: str, sampling: Sampling, num_sequences: int, num_tokens: int, timeout_s: float
) -> list[Step]:
    """All steps but the first of each continuation: that one is not subject to speculation."""

    def ask(prompt: str) -> list[Step]:
        body = {
            "model": model, "prompt": prompt, "n": num_sequences, "max_tokens": num_tokens, "ignore_eos": True,
            "logprobs": NUM_TOP, "return_tokens_as_token_ids": True, "repetition_penalty": 1.0, **sampling.request(),
        }  # fmt: skip
        return [step for choice in complete(base_url, body, timeout_s)["choices"] for step in _steps(choice, base_url)]

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        return [step for steps in pool.map(ask, PROMPTS) for step in steps]


def _steps(choice: dict[str, Any], base_url: str) -> list[Step]:
    given = choice.get("logprobs") or {}
    tokens, tops = given.get("tokens"), given.get("top_logprobs")
    if not tokens or not tops:
        raise EngineError(f"the engine at {base_url} gives no log-probabilities, so its sampling cannot be checked")
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
