"""The target's own probabilities, computed with transformers: what a lossless engine must sample from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drafts.distribution import OTHER, NextProbabilities, Prefix
from pruning.checkpoint import load_model

if TYPE_CHECKING:
    import torch

BATCH = 64
NUM_TOP = 8
"""The most likely tokens whose logits tell how much bfloat16 rounds."""


@dataclass(frozen=True)
class Difference:
    """Two greedy continuations part, and what the target's float32 logits say of it.

    Attributes:
        position: index of the first differing token.
        tokens: the two tokens there, without and with draft; OTHER (-1) where one ended before.
        gap: absolute difference of the target's float32 logits of the two; None where one ended before.
        lag: how far the lesser of the two lies below the best logit; None where one ended before.
        rounding: how far a run in bfloat16 may move a logit here: the largest deviation from float32 among the most likely
            tokens along this text, and no less than the distance of neighbouring bfloat16 numbers at the best logit.
    """

    position: int
    tokens: tuple[int, int]
    gap: float | None
    lag: float | None
    rounding: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it: each of two runs may move each of two logits by ``rounding``."""
        return self.lag is not None and self.lag <= 2 * self.rounding


def bfloat16_step(value: float) -> float:
    """Distance from ``value`` to the next bfloat16 number: 8 significant bits, so 2^-7 of its power of two."""
    return math.ldexp(1.0, math.frexp(value)[1] - 8) if value else 0.0


class ExactTarget:
    """A target in float32 and in bfloat16, for exact probabilities and for what rounding does to them."""

    def __init__(self, folder: Path):
        self._models = {name: load_model(folder, name).eval() for name in ("float32", "bfloat16")}

    def next_probabilities(self, prompt: Prefix, temperature: float, dtype: str = "float32") -> NextProbabilities:
        """A function from continuations of ``prompt`` (of one length) to the next token's probabilities."""

        def rows(prefixes: Sequence[Prefix]) -> torch.Tensor:
            logits = self._logits([prompt + prefix for prefix in prefixes], dtype, last=1)[:, -1].double()
            return (logits / temperature).softmax(-1)

        known: dict[Prefix, torch.Tensor] = {}

        def look_up(prefixes: Sequence[Prefix]) -> Iterable[Sequence[float]]:
            missing = [prefix for prefix in prefixes if prefix not in known]
            for start in range(0, len(missing), BATCH):
                part = missing[start : start + BATCH]
                known.update(zip(part, rows(part), strict=True))
            return (known[prefix].tolist() for prefix in prefixes)  # one list at a time: vocabularies are large

        return look_up

    def difference(self, prompt: Prefix, plain: Prefix, drafted: Prefix) -> Difference | None:
        """Where two greedy continuations of a prompt part; None when they are equal.

        Both go on to the same rule (a number of tokens, or the end of the text as their last token), so one that ends
        before the other is a difference too, which no rounding explains.
        """
        both = min(len(plain), len(drafted))
        position = next((i for i in range(both) if plain[i] != drafted[i]), both)
        if position == len(plain) == len(drafted):
            return None
        if position == both:
            ends = (*plain, OTHER)[position], (*drafted, OTHER)[position]
            return Difference(position, ends, gap=None, lag=None, rounding=0.0)
        text = [prompt + plain[:position]]
        exact, rounded = self._logits(text, "float32")[0], self._logits(text, "bfloat16")[0]
        start = len(prompt) - 1
        top = exact[start:].topk(min(NUM_TOP, exact.shape[-1]), dim=-1).indices
        seen = float((exact - rounded)[start:].gather(-1, top).abs().max())
        rounding = max(seen, bfloat16_step(float(rounded[-1].max())))
        pair = exact[-1][[plain[position], drafted[position]]]
        return Difference(
            position, (plain[position], drafted[position]), float((pair[0] - pair[1]).abs()),
            float(exact[-1].max() - pair.min()), rounding,
        )  # fmt: skip

    def _logits(self, texts: Sequence[Prefix], dtype: str, last: int = 0) -> torch.Tensor:
        """[texts, positions, vocabulary] as float32, of the ``last`` positions or (0) all; all texts have one length."""
        import torch

        with torch.inference_mode():
            answer = self._models[dtype](torch.tensor(texts), use_cache=False, logits_to_keep=last)
        logits: torch.Tensor = answer.logits
        return logits.float()
