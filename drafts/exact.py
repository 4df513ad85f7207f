"""The target's own probabilities, computed with transformers: what a lossless engine must sample from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drafts.distribution import OTHER, NextProbabilities, Prefix
from pruning.checkpoint import load_model

if TYPE_CHECKING:
    import torch

BATCH = 64
NUM_TOP = 8
"""The most likely tokens whose logits tell how much the engine's type rounds."""
BITS = {"bfloat16": 8, "float16": 11, "float32": 24}
"""Significant bits of the types that engines compute in."""


@dataclass(frozen=True)
class Difference:
    """Two greedy continuations part, and what the target's exact logits say of it.

    Attributes:
        position: index of the first differing token.
        tokens: the two tokens there, without and with draft; OTHER (-1) where one ended before.
        gap: absolute difference of the target's exact logits of the two; None where one ended before.
        lag: how far the lesser of the two lies below the best logit; None where one ended before.
        rounding: how far a run in the engine's type may move a logit here: the largest deviation from the exact ones among the
            most likely tokens along this text, and no less than the distance of neighbouring numbers at the best logit.
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


def rounding_dtype(dtype: str) -> str:
    """The type that an engine rounds to: what its command line says where that is one of ``BITS``, else bfloat16."""
    return {"half": "float16", "float": "float32"}.get(dtype, dtype if dtype in BITS else "bfloat16")


def rounding_step(value: float, dtype: str) -> float:
    """Distance from ``value`` to the next number of a type; of bfloat16, with 8 significant bits, 2^-7 of its power of two."""
    return math.ldexp(1.0, math.frexp(value)[1] - BITS[dtype]) if value else 0.0


class ExactTarget:
    """A target in the engine's type and in one with far more bits, for exact probabilities and for what rounding does to them.

    Args:
        folder: the target.
        dtype: what the engine computes in, a key of ``BITS``.
    """

    def __init__(self, folder: Path, dtype: str = "bfloat16"):
        self._dtype = dtype
        self._exact = load_model(folder, "float64" if dtype == "float32" else "float32")
        self._rounded = load_model(folder, dtype)

    def next_probabilities(self, prompt: Prefix, temperature: float, rounded: bool = False) -> NextProbabilities:
        """A function from continuations of ``prompt`` (of one length) to the next token's probabilities.

        Args:
            rounded: as the engine's type has them, instead of the exact ones.
        """
        model = self._rounded if rounded else self._exact

        def rows(prefixes: Sequence[Prefix]) -> torch.Tensor:
            logits = _logits(model, [prompt + prefix for prefix in prefixes], last=1)[:, -1].double()
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
        exact, rounded = _logits(self._exact, text)[0], _logits(self._rounded, text)[0]
        start = len(prompt) - 1
        top = exact[start:].topk(min(NUM_TOP, exact.shape[-1]), dim=-1).indices
        seen = float((exact - rounded)[start:].gather(-1, top).abs().max())
        rounding = max(seen, rounding_step(float(rounded[-1].max()), self._dtype))
        pair = exact[-1][[plain[position], drafted[position]]]
        return Difference(
            position, (plain[position], drafted[position]), float((pair[0] - pair[1]).abs()),
            float(exact[-1].max() - pair.min()), rounding,
        )  # fmt: skip


def _logits(model: Any, texts: Sequence[Prefix], last: int = 0) -> torch.Tensor:
    """[texts, positions, vocabulary] as float64, of the ``last`` positions or (0) all; all texts have one length."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor(texts), use_cache=False, logits_to_keep=last).logits
    return logits.double()
