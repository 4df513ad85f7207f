"""The record of a scoring: scores.json, and what each score would keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pruning import selection
from stages.errors import InputError
from stages.folders import read_json
from stages.settings import Settings, validate

FILE = "scores.json"


class GreedyTrace(Settings):
    """Layers in the order a greedy removal took them, and the KL (nats per token) after each."""

    removed: tuple[int, ...]
    kl: tuple[float, ...]
    num_tokens: int


class Scores(Settings):
    """What was measured about a target's layers; a score that was not asked for is None."""

    schema_version: Literal[1] = 1
    target_sha256: str
    num_layers: int
    num_samples: int
    num_tokens: int
    calibration_sha256: str
    """Hash of the exact tokens."""
    angular: tuple[tuple[float, ...], ...] | None = None
    block_influence: tuple[float, ...] | None = None
    greedy_kl: GreedyTrace | None = None

    def to_json(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=1) + "\n"

    def kept(self, method: str, keep: int) -> tuple[int, ...]:
        """The layers that stay by one of the methods that score; InputError when it was not measured."""
        if getattr(self, method) is None:
            raise InputError(f"the scores hold no {method}; score again with scores: [{method}]")
        if method == "angular":
            return selection.angular(self.angular or (), keep)
        if method == "block_influence":
            return selection.block_influence(self.block_influence or (), keep)
        assert self.greedy_kl is not None
        return selection.greedy_kl(self.num_layers, self.greedy_kl.removed, keep)

    def summary(self, method: str, kept_layers: Sequence[int]) -> dict[str, Any]:
        """The few numbers behind a decision, for the plan."""
        found: dict[str, Any] = {"num_tokens": self.num_tokens, "calibration_sha256": self.calibration_sha256}
        removed = [layer for layer in range(self.num_layers) if layer not in kept_layers]
        if method == "angular" and self.angular and removed:
            found |= {"span": [removed[0], removed[-1] + 1], "distance": self.angular[removed[0]][removed[-1] + 1]}
        if method == "block_influence" and self.block_influence:
            found["influence_removed"] = {str(layer): self.block_influence[layer] for layer in removed}
        if method == "greedy_kl" and self.greedy_kl and removed:
            found["num_tokens"] = self.greedy_kl.num_tokens
            found |= {"order": self.greedy_kl.removed[: len(removed)], "kl": self.greedy_kl.kl[len(removed) - 1]}
        return found


def load_scores(path: Path) -> Scores:
    """Reads scores from their file or from the folder that holds scores.json."""
    file = path / FILE if path.is_dir() else path
    return validate(Scores, read_json(file, "give the folder that `score` wrote"), str(file))
