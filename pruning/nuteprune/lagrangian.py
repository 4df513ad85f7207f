"""What drives masks to the wanted sparsity: a target that ramps up, and a penalty whose multipliers are maximised."""

from __future__ import annotations

import torch
from torch import Tensor


def ramp(wanted: float, done: float, warmup: float) -> float:
    """The sparsity aimed at: wanted * min(1, done / warmup), both shares of the search."""
    return wanted * min(1.0, done / warmup) if warmup > 0 else wanted


def penalty(sparsity: Tensor, aim: float, multipliers: Tensor) -> Tensor:
    """lam1 (s - t) + lam2 (s - t)^2, with ``multipliers`` [lam1, lam2]."""
    distance = sparsity - aim
    return multipliers[0] * distance + multipliers[1] * distance**2


def initial_multipliers() -> Tensor:
    """Both multipliers, from 0."""
    return torch.zeros(2, requires_grad=True)


def multiplier_optimizer(multipliers: Tensor, rate: float) -> torch.optim.Optimizer:
    """Adam that *maximises*: the multipliers grow against the masks as long as the sparsity is off."""
    return torch.optim.Adam([multipliers], lr=rate, maximize=True)
