"""Parallel drafting (PARD, arXiv 2504.18583): mask tokens after the newest token let one pass of the draft propose K tokens.

At inference the draft reads ``x_0 … x_s, m, m, …``: the newest token x_s proposes x_{s+1}, the k-th mask proposes x_{s+1+k} from
position s + k. In training all starts s of an answer share one sequence: masks are appended behind the text, and attention shows
the mask (s, k) the text up to s and the masks (s, 1 … k) only. What it should say is the target's distribution at s + k, which
the ordinary position there is judged by too.

Axis letters: B rows, T text tokens, M masks of a row, X = T + M, N judged positions of text, P judged positions of both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from drafts.examples import Batch
from stages.errors import InputError

CONFIG_KEY = "pard_token"
"""Where vLLM looks for the mask token in a draft's config.json."""

BYTE_FALLBACK, BYTE_LEVEL = "<0xFF>", "\u00ff"
"""The byte FF, which no text in UTF-8 has, as vocabularies with byte fallback and byte-level ones write it."""


def mask_token(config: Any, tokenizer: Any) -> int:
    """A token that no text has, to serve as the mask: a row of the embedding that the tokenizer does not use, else the byte FF.

    Raises:
        InputError: the vocabulary has neither.
    """
    known = getattr(config, CONFIG_KEY, None)
    if known is not None:
        return int(known)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    beyond = max(vocabulary.values()) + 1
    if beyond < config.vocab_size:
        return beyond
    if BYTE_FALLBACK in vocabulary:
        return vocabulary[BYTE_FALLBACK]
    if vocabulary.keys() >= set(ByteLevel.alphabet()):  # else that is the letter
        return vocabulary[BYTE_LEVEL]
    raise InputError(
        "parallel_tokens: the vocabulary has no token that no text uses (a row beyond the tokenizer's, or the byte FF); "
        "set parallel_tokens to 0"
    )


def refuse_windows(config: Any, length: int) -> None:
    """Raises InputError for a model whose layers see less than ``length`` positions back: masks are trained without windows."""
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    used = "sliding_attention" in types if types else getattr(config, "use_sliding_window", True)
    if window is not None and used and window < length:
        raise InputError(
            f"parallel_tokens: the draft has sliding-window attention of {window} positions, less than {length}; "
            "give a shorter max_length, or set parallel_tokens to 0"
        )


def expected_length(num_tokens: int, keep: float) -> float:
    """Positions with masks for each position without, on average."""
    return sum(keep**depth for depth in range(num_tokens))


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """A batch whose judged positions are followed by mask positions.

    The first N of ``rows_N``, ``columns_N``, ``labels_N`` and ``weights_N`` are the ordinary ones; the masks' columns are the
    positions in the text that they stand for, so that a teacher judges them as it judges text.

    Attributes:
        inputs_BX: text and masks, int64.
        positions_BX: their positions.
        visible_B1XX: what each of them attends to, bool.
        places_P: column in ``inputs_BX`` of each judged position.
        depths_P: 0 for text, k for the k-th mask.
        before_P: index of the judged position that must be accepted before this one counts; -1 for text.
    """

    inputs_BX: Tensor
    positions_BX: Tensor
    visible_B1XX: Tensor
    places_P: Tensor
    depths_P: Tensor
    before_P: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return MaskedBatch(**moved)

    def of_rows(self, rows: range) -> MaskedBatch:
        """The batch of some neighbouring rows, with their masks."""
        kept, part = self.judged_in(rows), slice(rows.start, rows.stop)
        place = torch.cumsum(kept, 0) - 1
        before = self.before_P[kept]
        return MaskedBatch(
            **vars(super().of_rows(rows)), inputs_BX=self.inputs_BX[part], positions_BX=self.positions_BX[part],
            visible_B1XX=self.visible_B1XX[part], places_P=self.places_P[kept], depths_P=self.depths_P[kept],
            before_P=torch.where(before < 0, before, place[before]),
        )  # fmt: skip


@dataclass(frozen=True)
class _Mask:
    """One judged position of a row: start s, depth k (0 is text), its index, and that of the position before it in its chain."""

    row: int
    start: int
    depth: int
    index: int
    before: int = -1


def _drawn(batch: Batch, num_tokens: int, keep: float, draw: random.Random) -> list[_Mask]:
    """The masks of a batch: at each depth a share ``keep`` of those that the depth before it has (conditional drop)."""
    places = list(zip(batch.rows_N.tolist(), batch.columns_N.tolist(), strict=True))
    ends: dict[int, int] = {}
    for row, column in places:
        ends[row] = max(ends.get(row, 0), column)
    last = [_Mask(row, column, 0, index) for index, (row, column) in enumerate(places)]
    masks: list[_Mask] = []
    for depth in range(1, num_tokens):
        possible = [mask for mask in last if mask.start + depth <= ends[mask.row]]
        kept = sorted(draw.sample(possible, round(keep * len(possible))), key=lambda mask: mask.index)
        first = len(places) + len(masks)
        last = [_Mask(mask.row, mask.start, depth, first + n, mask.index) for n, mask in enumerate(kept)]
        masks += last
    return masks


def with_masks(batch: Batch, num_tokens: int, keep: float, token: int, draw: random.Random) -> MaskedBatch:
    """The batch with mask positions for proposing ``num_tokens`` tokens in one pass.

    Args:
        keep: share of the masks of one depth that the next depth keeps.
        token: the mask token.
        draw: decides which.
    """
    masks = _drawn(batch, num_tokens, keep, draw)
    rows, length = batch.ids_BT.shape
    counts = [0] * rows
    places = []
    for mask in masks:
        places.append(length + counts[mask.row])
        counts[mask.row] += 1
    width = length + max(counts)
    inputs = torch.full((rows, width), token)
    inputs[:, :length] = batch.ids_BT
    starts, depths = torch.full((rows, width), -1), torch.zeros(rows, width, dtype=torch.int64)
    positions = torch.zeros(rows, width, dtype=torch.int64)
    positions[:, :length] = torch.arange(length)
    if masks:
        at = torch.tensor([mask.row for mask in masks]), torch.tensor(places)
        starts[at] = torch.tensor([mask.start for mask in masks])
        depths[at] = torch.tensor([mask.depth for mask in masks])
        positions[at] = starts[at] + depths[at]
    own = torch.tensor([mask.row for mask in masks], dtype=torch.int64)
    columns = torch.tensor([mask.start + mask.depth for mask in masks], dtype=torch.int64)
    by_place = {place: i for i, place in enumerate(zip(batch.rows_N.tolist(), batch.columns_N.tolist(), strict=True))}
    same = torch.tensor([by_place[m.row, m.start + m.depth] for m in masks], dtype=torch.int64)
    return MaskedBatch(
        ids_BT=batch.ids_BT,
        rows_N=torch.cat([batch.rows_N, own]),
        columns_N=torch.cat([batch.columns_N, columns]),
        labels_N=torch.cat([batch.labels_N, batch.labels_N[same]]),
        weights_N=torch.cat([batch.weights_N, batch.weights_N[same]]),
        indices=batch.indices,
        inputs_BX=inputs,
        positions_BX=positions,
        visible_B1XX=_visible(length, starts, depths)[:, None],
        places_P=torch.cat([batch.columns_N, torch.tensor(places, dtype=torch.int64)]),
        depths_P=torch.tensor([0] * len(batch.rows_N) + [mask.depth for mask in masks]),
        before_P=torch.tensor([-1] * len(batch.rows_N) + [mask.before for mask in masks]),
    )


def _visible(length: int, starts_BX: Tensor, depths_BX: Tensor) -> Tensor:
    """What attends to what, bool [B, X, X]: text causally; a mask to the text up to its start and to its own chain up to itself."""
    width = starts_BX.shape[1]
    place = torch.arange(width)
    causal = (place[None] <= place[:, None]) & (place < length)[None] & (place < length)[:, None]
    is_mask = starts_BX >= 0
    text = is_mask[:, :, None] & (place < length)[None, None] & (place[None, None] <= starts_BX[:, :, None])
    chain = is_mask[:, :, None] & is_mask[:, None] & (starts_BX[:, :, None] == starts_BX[:, None])
    chain &= depths_BX[:, None] <= depths_BX[:, :, None]
    return causal[None] | text | chain | torch.eye(width, dtype=torch.bool)[None]


def additive(visible: Tensor) -> Tensor:
    """The same as a float mask that is added to attention's scores, as a model with eager attention wants it."""
    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


def reached(accepted_P: Tensor, batch: MaskedBatch) -> Tensor:
    """The chance that verification gets to each judged position: that all before it in its chain are accepted (PARD-2).

    Args:
        accepted_P: the chance that a draft token is accepted at each position.
    """
    chances = torch.ones_like(accepted_P)
    for depth in range(1, int(batch.depths_P.max()) + 1):
        own = batch.depths_P == depth
        before = batch.before_P[own]
        chances[own] = chances[before] * accepted_P[before]
    return chances
