"""The hard-concrete distribution (arXiv 1712.01312) over masks, and its deterministic form. Pure functions of log-alpha.

Each unit (a KV group with its queries, an MLP neuron, a hidden dimension) has one parameter log-alpha; a mask z in [0, 1] is
drawn from it, and is exactly 0 or exactly 1 with positive probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

BETA = 2 / 3
"""Temperature of the concrete distribution."""
LOW, HIGH = -0.1, 1.1
"""The interval that the concrete sample is stretched to before it is clipped to [0, 1]."""
EPSILON = 1e-6
"""Uniform draws, and chances, keep this distance from 0 and 1."""
BOUND = math.log(100)
"""Log-alphas stay within ± this: beyond it nothing is learned any more."""
SHARPNESS = 0.8
"""Factor of log-alpha in the deterministic mask's soft values (the public code's)."""


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Draws z = clip(1.2 s - 0.1, 0, 1) with s = sigmoid((ln u - ln(1 - u) + log_alpha) / beta); differentiable.

    Args:
        log_alpha: any shape.
        uniform: draws from [0, 1) of the same shape.
    """
    u = uniform.clamp(EPSILON, 1 - EPSILON)
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (HIGH - LOW) + LOW).clamp(0, 1)


def open_chance(log_alpha: Tensor) -> Tensor:
    """P(z > 0) = sigmoid(log_alpha - beta ln(0.1 / 1.1)), kept EPSILON away from 0 and 1; differentiable."""
    return torch.sigmoid(log_alpha - BETA * math.log(-LOW / HIGH)).clamp(EPSILON, 1 - EPSILON)


def initial(drop: float) -> float:
    """The log-alpha a unit starts from: ln((1 - drop) / drop), within the bound (the L0 papers' initial drop rate)."""
    return max(-BOUND, min(BOUND, math.log((1 - drop) / drop)))


def num_zeros(log_alpha: Tensor) -> int:
    """How many of one layer's units [n] are off: round(n - sum P(z > 0)), but never all of them.

    Keeping one is a deviation: a layer without heads or neurons has no shape that engines load.
    """
    n = log_alpha.numel()
    return min(round(n - float(open_chance(log_alpha.detach().double()).sum())), n - 1)


def deterministic(log_alpha: Tensor, zeros: int | None = None) -> Tensor:
    """The mask [n] of one layer without chance: its smallest units are 0, the others sigmoid(0.8 log_alpha / beta).

    Args:
        log_alpha: [n].
        zeros: how many are 0; None for ``num_zeros``. On ties the later units go.
    """
    soft = torch.sigmoid(SHARPNESS * log_alpha.detach() / BETA)
    kept = torch.sort(log_alpha.detach(), descending=True, stable=True).indices
    soft[kept[log_alpha.numel() - (num_zeros(log_alpha) if zeros is None else zeros) :]] = 0
    return soft


def opened(log_alpha: Tensor, kept: int) -> Tensor:
    """The mask [n] of one layer with so many units on: ``deterministic``, but units that it has off and that are kept are 1.

    Their own values are next to 0: a model would carry them and not use them, and as a factor of what they give, neither
    fine-tuning could bring them back.
    """
    own = deterministic(log_alpha)
    mask = deterministic(log_alpha, log_alpha.numel() - kept)
    return torch.where((mask > 0) & (own == 0), 1.0, mask)


@dataclass
class Masks:
    """One value per unit: log-alphas, drawn masks, or deterministic ones.

    Attributes:
        groups: [L, G], KV groups: with grouped queries a key-value head and all its query heads, else single heads.
        neurons: [L, F], MLP neurons.
        hidden: [D], dimensions of the residual stream, shared by all layers; None where they are not masked.
    """

    groups: Tensor
    neurons: Tensor
    hidden: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        found = {"groups": self.groups, "neurons": self.neurons, "hidden": self.hidden}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def on(self, device: torch.device | str) -> Masks:
        """The same masks on a device, gradient and all."""
        return Masks(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def copied(self, device: torch.device | str) -> Masks:
        """A copy on a device that no later step changes, without gradient."""
        return Masks(**{name: tensor.detach().to(device, copy=True) for name, tensor in self.tensors().items()})


def initial_masks(num_layers: int, groups: int, neurons: int, hidden: int | None, drop: float) -> Masks:
    """Log-alphas of equal height, to be trained."""

    def make(*shape: int) -> Tensor:
        return torch.full(shape, initial(drop)).requires_grad_()

    return Masks(make(num_layers, groups), make(num_layers, neurons), None if hidden is None else make(hidden))


def sample_all(log_alphas: Masks, generator: torch.Generator) -> Masks:
    """Draws every mask once; the draws come from ``generator`` (on the CPU, so that every device sees the same)."""

    def draw(log_alpha: Tensor) -> Tensor:
        return sample(log_alpha, torch.rand(log_alpha.shape, generator=generator).to(log_alpha.device))

    return Masks(**{name: draw(tensor) for name, tensor in log_alphas.tensors().items()})


def deterministic_all(log_alphas: Masks) -> Masks:
    """The deterministic masks, layer by layer."""
    groups, neurons = (
        torch.stack([deterministic(row) for row in rows]) for rows in (log_alphas.groups, log_alphas.neurons)
    )
    return Masks(groups, neurons, None if log_alphas.hidden is None else deterministic(log_alphas.hidden))


@torch.no_grad()
def clamp_all(log_alphas: Masks) -> None:
    """Brings log-alphas back within ± BOUND, in place; after each step."""
    for tensor in log_alphas.tensors().values():
        tensor.clamp_(-BOUND, BOUND)
