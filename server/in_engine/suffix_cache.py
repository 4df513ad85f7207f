"""Lets an engine that decodes by suffixes forget the answers it has seen, so that a comparison can start it cold."""

from __future__ import annotations

from typing import Any


class SuffixCacheExtension:
    """Worker extension (``--worker-extension-cls``); vLLM's ``/collective_rpc`` calls its method by name."""

    model_runner: Any

    def forget_suffixes(self) -> None:
        """Puts an empty cache in the place of the proposer's; meant for when no request is under way."""
        drafter = self.model_runner.drafter
        cache = drafter.suffix_cache
        drafter.suffix_cache = type(cache)(
            max_tree_depth=cache.max_tree_depth, max_cached_requests=cache.max_cached_requests
        )
