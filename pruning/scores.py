"""How little each layer does on calibration text: angular distance of spans, Block Influence, greedy removal by KL."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.calibration import Batch
from pruning.families import family_of
from pruning.surgery import bypassed
from stages.errors import InputError
from stages.progress import Advance

CHUNK_TOKENS = 512
"""Tokens whose logits are held at once while comparing distributions."""


def _nothing(amount: float = 1, note: str = "") -> None:
    """Progress that nobody watches."""


@contextmanager
def watching(model: PreTrainedModel, see: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Within it, every forward pass calls ``see(l, H[l])`` for l = 0 … L with the residual stream H[l] [B, T, D].

    H[l] is what layer l reads; H[L] is what the last layer writes, *before* the final norm. (transformers'
    ``output_hidden_states`` gives the normed one there, which is off by one norm.)
    """
    layers = family_of(model.config).layers_of(model)

    def before(index: int) -> Callable[..., None]:
        return lambda module, args, kwargs: see(index, args[0] if args else kwargs["hidden_states"])

    def after(module: Any, args: Any, output: Any) -> None:
        see(len(layers), output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_pre_hook(before(index), with_kwargs=True) for index, layer in enumerate(layers)]
    handles.append(layers[-1].register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hidden_states(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The states [B, T, D] that the lm_head reads (after the final norm)."""
    output = model.base_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    states: torch.Tensor = output.last_hidden_state
    return states


def states_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The states [N, D] of tokens that are no padding, where they are: with several GPUs the last one."""
    states = hidden_states(model, batch)
    return states[batch.attention_mask.to(states.device).bool()]


def _place(index: int) -> str:
    """Where H[index] is, in words."""
    return "the embeddings" if index == 0 else f"layer {index - 1}"


def _refuse_broken(states: torch.Tensor, index: int) -> torch.Tensor:
    """Returns the states [N, D] unless one is NaN, infinite or all zero, where no angle is defined."""
    if not torch.isfinite(states).all():
        raise InputError(f"the output of {_place(index)} has NaN or infinity; check the target, or score in float32")
    if (states == 0).all(dim=-1).any():
        raise InputError(f"the output of {_place(index)} is all zero for a token: no angle; check the target")
    return states


class _Layers:
    """Collects, pass by pass, the last tokens' states and the sums of Block Influence."""

    def __init__(self, num_layers: int):
        self.distances = torch.zeros(num_layers + 1, num_layers + 1, dtype=torch.float64)
        self.influences = [0.0] * num_layers
        self.num_samples = self.num_tokens = 0

    def start(self, batch: Batch) -> None:
        """A pass over ``batch`` begins."""
        self.batch = batch
        self.last: list[torch.Tensor] = []
        self.previous: torch.Tensor | None = None

    def see(self, index: int, hidden: torch.Tensor) -> None:
        """Takes in H[index]; adds what the layer before it changed."""
        mask = self.batch.attention_mask.to(hidden.device).bool()
        tokens = _refuse_broken(hidden[mask].float(), index)
        if self.previous is not None:
            cosine = functional.cosine_similarity(self.previous.to(tokens.device), tokens, dim=-1, eps=0.0)
            self.influences[index - 1] += float((1 - cosine.clamp(-1, 1)).sum())
        self.previous = tokens
        rows = torch.arange(len(hidden), device=hidden.device)
        self.last.append(hidden[rows, self.batch.last().to(hidden.device)].double().cpu())

    def finish(self) -> None:
        """The pass is over: adds its samples' distances."""
        self.distances += angular_distances(torch.stack(self.last, dim=1)).sum(dim=0)
        self.num_samples += len(self.last[0])
        self.num_tokens += self.batch.num_tokens


def angular_distances(states: torch.Tensor) -> torch.Tensor:
    """d(l, m) = arccos(cos(H[l], H[m])) / pi, between all pairs of places.

    In float64, a deviation from the paper's fp32: near a cosine of 1, arccos loses half the digits.

    Args:
        states: [B, L+1, D], one token per sample.

    Returns:
        [B, L+1, L+1] in [0, 1].
    """
    units = states.double() / states.double().norm(dim=-1, keepdim=True)
    return torch.arccos((units @ units.transpose(1, 2)).clamp(-1, 1)) / math.pi


@torch.no_grad()
def layer_scores(
    model: PreTrainedModel, batches: Sequence[Batch], advance: Advance = _nothing
) -> tuple[list[list[float]], list[float]]:
    """Angular distances and Block Influence in one pass over the text.

    Returns:
        distances [L+1][L+1]: mean over samples, at the last token that is not padding, of d(l, m) (arXiv 2410.09982);
        influences [L]: BI_l = 1 - mean over tokens of cos(H[l], H[l+1]) (arXiv 2403.03853).

    Raises:
        InputError: NaN, infinity or a zero vector, naming the layer it came from.
    """
    layers = _Layers(model.config.num_hidden_layers)
    with watching(model, layers.see):
        for batch in batches:
            layers.start(batch.to(model.device))
            hidden_states(model, layers.batch)
            layers.finish()
            advance(batch.num_tokens)
    distances = (layers.distances / layers.num_samples).tolist()
    return distances, [influence / layers.num_tokens for influence in layers.influences]


def divergence(head: torch.nn.Module, reference: torch.Tensor, states: torch.Tensor) -> float:
    """Sum over tokens of KL(target || pruned) in nats, in fp32, from what the lm_head reads.

    Args:
        head: the target's lm_head; pruning leaves it as it is.
        reference: [N, D], the target's states.
        states: [N, D], the pruned model's.
    """
    total = 0.0
    for wanted, given in zip(reference.split(CHUNK_TOKENS), states.split(CHUNK_TOKENS), strict=True):
        p, q = (functional.log_softmax(head(part).float(), dim=-1) for part in (wanted, given))
        total += float((p.exp() * (p - q)).sum())
    return total


def _streams(model: PreTrainedModel, batch: Batch, removed: Sequence[int]) -> dict[int, torch.Tensor]:
    """H[l] of the model without the removed layers, by l."""
    found: dict[int, torch.Tensor] = {}
    with bypassed(model, removed), watching(model, lambda index, hidden: found.update({index: hidden})):
        hidden_states(model, batch)
    return found


def _divergence_without(
    model: PreTrainedModel,
    removed: Sequence[int],
    batches: Sequence[Batch],
    references: Sequence[torch.Tensor],
    streams: Sequence[dict[int, torch.Tensor]],
) -> float:
    """Sum over tokens of the KL without the removed layers, the last of which the streams were still made with.

    Below that layer nothing changes, so the pass resumes there: half the work on average.
    """
    head, total = family_of(model.config).head_of(model), 0.0
    for batch, wanted, stream in zip(batches, references, streams, strict=True):
        with bypassed(model, removed, resume=(removed[-1], stream[removed[-1]])):
            total += divergence(head, wanted, states_of(model, batch))
    if not math.isfinite(total):
        raise InputError(f"the divergence without layers {sorted(removed)} is not a number; check the target")
    return total


@torch.no_grad()
def greedy_removal(
    model: PreTrainedModel, batches: Sequence[Batch], keep: int, advance: Advance = _nothing
) -> tuple[list[int], list[float]]:
    """Removes, one at a time, the layer whose loss raises KL(target || pruned) on the text least.

    Args:
        model: the target.
        batches: calibration tokens; every candidate of every step runs over all of them.
        keep: stop when so many layers remain.
        advance: progress in candidates tried (``num_candidates`` in all).

    Returns:
        layers in the order they were removed, and the mean KL per token (nats) after each removal.

    Raises:
        InputError: when a divergence is not a number, naming the layers that were removed.
    """
    placed = [batch.to(model.device) for batch in batches]
    references = [states_of(model, batch) for batch in placed]
    num_tokens = sum(map(len, references))
    removed: list[int] = []
    divergences: list[float] = []
    while model.config.num_hidden_layers - len(removed) > keep:
        streams = [_streams(model, batch, removed) for batch in placed]
        rises: dict[int, float] = {}
        for layer in (layer for layer in range(model.config.num_hidden_layers) if layer not in removed):
            rises[layer] = _divergence_without(model, [*removed, layer], placed, references, streams) / num_tokens
            advance(1, f"{len(removed)} removed")
        removed.append(min(rises, key=lambda layer: rises[layer]))
        divergences.append(rises[removed[-1]])
    return removed, divergences


def num_candidates(num_layers: int, keep: int) -> int:
    """How many candidates a greedy removal from ``num_layers`` to ``keep`` layers tries."""
    return sum(range(keep + 1, num_layers + 1))
