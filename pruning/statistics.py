"""What width pruning knows about a target: one pass over calibration text, watched in every layer and before every down_proj."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from pruning.calibration import Batch
from pruning.families import family_of
from pruning.scores import hidden_states, watching
from stages.errors import InputError
from stages.progress import Advance


@dataclass(frozen=True)
class Statistics:
    """Means over all calibration tokens, in float64 on the CPU.

    Attributes:
        num_tokens: N, tokens without padding.
        distances: [L], rho_l, the angular distance between input and output of layer l.
        means: [L, F], of each down_proj's input.
        squares: [L, F], of its square.
    """

    num_tokens: int
    distances: torch.Tensor
    means: torch.Tensor
    squares: torch.Tensor

    @property
    def activations(self) -> torch.Tensor:
        """A [L, F]: root mean square of each channel."""
        return self.squares.sqrt()

    @property
    def variances(self) -> torch.Tensor:
        """[L, F], of each channel over tokens, with N - 1 in the denominator."""
        spread = (self.squares - self.means.square()).clamp(min=0)
        return spread * (self.num_tokens / max(self.num_tokens - 1, 1))


class _Pass:
    """Adds up, batch by batch."""

    def __init__(self, num_layers: int, num_channels: int):
        self.distances = torch.zeros(num_layers, dtype=torch.float64)
        self.means = torch.zeros(num_layers, num_channels, dtype=torch.float64)
        self.squares = torch.zeros(num_layers, num_channels, dtype=torch.float64)
        self.num_tokens = 0
        self.rows = torch.empty(0)
        self.previous: torch.Tensor | None = None

    def start(self, batch: Batch) -> None:
        """A pass over ``batch`` begins."""
        self.rows = batch.attention_mask.flatten().nonzero()[:, 0]
        self.num_tokens += batch.num_tokens
        self.previous = None

    def tokens(self, states: torch.Tensor) -> torch.Tensor:
        """[N, …], the places that are no padding, in fp32."""
        flat = states.flatten(0, 1)
        rows = self.rows.to(flat.device)
        return (flat if len(rows) == len(flat) else flat.index_select(0, rows)).float()

    def see(self, index: int, hidden: torch.Tensor) -> None:
        """Takes in H[index], and what the layer before it did to each token's direction."""
        tokens = self.tokens(hidden).double()
        if self.previous is not None:
            self.distances[index - 1] += float(angles(self.previous.to(tokens.device), tokens).sum())
        self.previous = tokens

    def see_channels(self, layer: int) -> Callable[..., None]:
        """A hook before the down_proj of ``layer``."""

        def hook(_: Any, args: Any) -> None:
            tokens = self.tokens(args[0])
            self.means[layer] += tokens.sum(0).double().cpu()
            self.squares[layer] += tokens.square().sum(0).double().cpu()

        return hook


def angles(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """(1/pi) arccos(cos(x_t, y_t)) of each row, in [0, 1], in float64: near a cosine of 1, arccos loses half the digits.

    Args:
        before: [N, D].
        after: [N, D].
    """
    x, y, dot = before.double(), after.double(), torch.linalg.vecdot
    return torch.arccos((dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()).clamp(-1, 1)) / math.pi


@contextmanager
def _watching_channels(model: PreTrainedModel, found: _Pass) -> Iterator[None]:
    layers = family_of(model.config).layers_of(model)
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(found.see_channels(index)) for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_broken(found: Statistics) -> Statistics:
    """Returns statistics in which every number is finite.

    Raises:
        InputError: names the first layer where one is not.
    """
    for layer in range(len(found.distances)):
        for what, values in (
            ("inputs of down_proj", torch.stack([found.means[layer], found.squares[layer]])),
            ("angle between input and output", found.distances[layer]),
        ):
            if not torch.isfinite(values).all():
                raise InputError(
                    f"layer {layer}: NaN or infinity in the {what}; check the target's weights, or set dtype: float32"
                )
    return found


@torch.no_grad()
def measure(model: PreTrainedModel, batches: Sequence[Batch], advance: Advance | None = None) -> Statistics:
    """Statistics of one forward pass over the text; the lm_head does not run.

    Raises:
        InputError: NaN, infinity or an angle of nothing, naming the layer.
    """
    found = _Pass(model.config.num_hidden_layers, model.config.intermediate_size)
    with watching(model, found.see), _watching_channels(model, found):
        for batch in batches:
            moved = batch.to(model.device)
            found.start(moved)
            hidden_states(model, moved)
            if advance is not None:
                advance(batch.num_tokens)
    n = max(found.num_tokens, 1)
    return _refuse_broken(Statistics(n, found.distances / n, found.means / n, found.squares / n))
