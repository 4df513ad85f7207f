"""A proposer whose draft tokens cost nothing and are hardly ever right: what checking them costs, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FreeProposer:
    """vLLM's ``custom_class`` interface: proposes each request's newest token again and again."""

    def __init__(self, vllm_config: Any):
        self._count = int(vllm_config.speculative_config.num_speculative_tokens)

    def load_model(self, target: Any) -> None:
        """There is nothing to load."""

    def propose(self, sampled: Sequence[Sequence[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Draft tokens for every request that has just got one."""
        return [[int(tokens[-1])] * self._count if tokens else [] for tokens in sampled]
