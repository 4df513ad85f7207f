"""The target as teacher: logits at judged positions, final hidden states remembered so that each is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drafts.examples import Batch


def decoder_and_head(model: Any) -> tuple[Any, Any]:
    """The part that gives final hidden states (after the last norm) and the layer that turns them into logits."""
    return model.get_decoder(), model.get_output_embeddings()


class Teacher:
    """Gives the target's logits for a batch.

    A small draft visits the same text many times, and its target's pass costs far more than its own. The hidden
    state after the final norm is [T, D], the logits [T, V] are one product away, so the states are kept while they
    fit into ``cache_bytes`` and recomputed beyond.
    """

    def __init__(self, model: Any, cache_bytes: int):
        self._decoder, self._head = decoder_and_head(model.eval())
        self._cache: dict[int, Tensor] = {}
        self._free = cache_bytes

    @torch.no_grad()
    def _hidden(self, batch: Batch) -> Tensor:
        """Final hidden states [B, T, D] of a batch."""
        if all(index in self._cache for index in batch.indices):
            rows = [self._cache[index] for index in batch.indices]
            out = torch.zeros(len(rows), batch.ids_BT.shape[1], rows[0].shape[-1], dtype=rows[0].dtype)
            for row, states in enumerate(rows):
                out[row, : states.shape[0]] = states
            return out.to(batch.ids_BT.device)
        hidden = self._decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
        for row, index in enumerate(batch.indices):
            length = int(batch.columns_N[batch.rows_N == row].max()) + 1
            size = length * hidden.shape[-1] * hidden.element_size()
            if index not in self._cache and size <= self._free:
                self._cache[index] = hidden[row, :length].cpu().clone()
                self._free -= size
        return hidden

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The target's logits [N, V] at the batch's judged positions, on the batch's device."""
        hidden = self._hidden(batch)
        rows, columns = batch.rows_N.to(hidden.device), batch.columns_N.to(hidden.device)
        logits: Tensor = self._head(hidden[rows, columns])
        return logits.to(batch.ids_BT.device)
