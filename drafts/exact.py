"""The target's own probabilities, computed with transformers: what a lossless engine must sample from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from drafts.distribution import NextProbabilities, Prefix
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
        tokens: the two tokens there, without and with draft.
        gap: absolute difference of the target's float32 logits of the two.
        lag: how far the lesser of the two lies below the best logit.
        rounding: largest deviation of bfloat16 from float32 logits among the most likely tokens along this text.
    """

    position: int
    tokens: tuple[int, int]
    gap: float
    lag: float
    rounding: float

    @property
    def tie(self) -> bool:
        """Whether rounding explains it: each of two runs may move each of two logits by ``rounding``."""
        return self.lag <= 2 * self.rounding


class ExactTarget:
    """A target in float32 and in bfloat16, for exact probabilities and for what rounding does to them."""

    def __init__(self, folder: Path):
        self._models = {name: load_model(folder, name).eval() for name in ("float32", "bfloat16")}

    def next_probabilities(self, prompt: Prefix, temperature: float, dtype: str = "float32") -> NextProbabilities:
        """A function from continuations of ``prompt`` (of one length) to the next token's probabilities."""

        def rows(prefixes: Sequence[Prefix]) -> list[list[float]]:
            logits = self._logits([prompt + prefix for prefix in prefixes], dtype)[:, -1].double()
            values: list[list[float]] = (logits / temperature).softmax(-1).tolist()
            return values

        known: dict[Prefix, list[float]] = {}

        def look_up(prefixes: Sequence[Prefix]) -> list[list[float]]:
            missing = [prefix for prefix in prefixes if prefix not in known]
            for start in range(0, len(missing), BATCH):
                part = missing[start : start + BATCH]
                known.update(zip(part, rows(part), strict=True))
            return [known[prefix] for prefix in prefixes]

        return look_up

    def difference(self, prompt: Prefix, plain: Prefix, drafted: Prefix) -> Difference | None:
        """Where two greedy continuations of a prompt part; None when they are equal."""
        position = next((i for i, (a, b) in enumerate(zip(plain, drafted, strict=False)) if a != b), None)
        if position is None:
            return None
        text = [prompt + plain[:position]]
        exact, rounded = self._logits(text, "float32")[0], self._logits(text, "bfloat16")[0]
        start = len(prompt) - 1
        top = exact[start:].topk(min(NUM_TOP, exact.shape[-1]), dim=-1).indices
        rounding = float((exact - rounded)[start:].gather(-1, top).abs().max())
        pair = exact[-1][[plain[position], drafted[position]]]
        return Difference(
            position, (plain[position], drafted[position]), float((pair[0] - pair[1]).abs()),
            float(exact[-1].max() - pair.min()), rounding,
        )  # fmt: skip

    def _logits(self, texts: Sequence[Prefix], dtype: str) -> torch.Tensor:
        """[texts, positions, vocabulary] as float32; all texts have one length."""
        import torch

        with torch.inference_mode():
            logits: torch.Tensor = self._models[dtype](torch.tensor(texts), use_cache=False).logits
        return logits.float()
