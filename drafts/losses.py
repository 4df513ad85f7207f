"""Losses of recovery, per judged position. Axis letters: N positions, V vocabulary.

Every loss is a weighted mean, ``sum(weight * value) / sum(weight)``, in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(student_NV: Tensor, labels_N: Tensor, weights_N: Tensor) -> Tensor:
    """-log q(label): imitates the tokens the target chose.

    Args:
        student_NV: logits of the student at the positions *before* the labels.
        labels_N: the tokens that follow, int64.
        weights_N: weight of each position, float.
    """
    values_N = functional.cross_entropy(student_NV.float(), labels_N, reduction="none")
    return (weights_N * values_N).sum() / weights_N.sum()


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
    """KL(teacher || student): imitates the target's whole distribution (Hinton et al., arXiv 1503.02531, at T = 1)."""
    log_q_NV = torch.log_softmax(student_NV.float(), -1)
    log_p_NV = torch.log_softmax(teacher_NV.float(), -1)
    values_N = (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
    return (weights_N * values_N).sum() / weights_N.sum()


def overlap(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """sum_x min(p(x), q(x)) per position: the chance that a probabilistic draft token is accepted at temperature 1."""
    q_NV, p_NV = torch.softmax(student_NV.float(), -1), torch.softmax(teacher_NV.float(), -1)
    return torch.minimum(p_NV, q_NV).sum(-1)


def agreement(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """1.0 where the most likely tokens are equal: what a greedy target accepts; per position."""
    return (student_NV.argmax(-1) == teacher_NV.argmax(-1)).float()
