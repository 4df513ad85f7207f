"""Losses of recovery, per judged position. Axis letters: N positions, V vocabulary.

Every loss is a weighted mean, ``sum(weight * value) / sum(weight)``, in float32.
"""

from __future__ import annotations

from typing import Any

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


ROWS = 64
"""Positions of KL that are computed at a time: their float32 temporaries stay in the processor's cache."""


class _ForwardKL(torch.autograd.Function):
    """KL(p || q) of two softmaxes with its gradient q - p, in as few passes over [N, V] as there are.

    Written out because, for a draft of one or two layers, this loss costs more than the layers.
    """

    @staticmethod
    def forward(ctx: Any, student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
        """The weighted mean; keeps its gradient with respect to the student's logits."""
        shares_N = weights_N / weights_N.sum()
        gradient_NV, total = torch.empty_like(student_NV), student_NV.new_zeros((), dtype=torch.float32)
        for start in range(0, len(student_NV), ROWS):
            rows = slice(start, start + ROWS)
            log_p = torch.log_softmax(teacher_NV[rows], -1, dtype=torch.float32)
            log_q = torch.log_softmax(student_NV[rows], -1, dtype=torch.float32)
            p = log_p.exp()
            total += (shares_N[rows] * torch.linalg.vecdot(p, log_p.sub_(log_q))).sum()
            gradient_NV[rows] = log_q.exp_().sub_(p).mul_(shares_N[rows, None])
        ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        """Gradient for the student's logits only: the teacher does not learn."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None


def forward_kl(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
    """KL(teacher || student): imitates the target's whole distribution (Hinton et al., arXiv 1503.02531, at T = 1)."""
    loss: Tensor = _ForwardKL.apply(student_NV, teacher_NV, weights_N)
    return loss


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
    """KL(student || teacher): keeps the draft from what the target would not say (MiniLLM, arXiv 2306.08543)."""
    log_q_NV = torch.log_softmax(student_NV.float(), -1)
    values_N = (log_q_NV.exp() * (log_q_NV - torch.log_softmax(teacher_NV.float(), -1))).sum(-1)
    return (weights_N * values_N).sum() / weights_N.sum()


def negative_log_overlap(student_NV: Tensor, teacher_NV: Tensor, weights_N: Tensor) -> Tensor:
    """-log sum_x min(p(x), q(x)): the chance of acceptance itself (the LK family, arXiv 2602.23881)."""
    return -(weights_N * overlap(student_NV, teacher_NV).clamp_min(1e-6).log()).sum() / weights_N.sum()


def overlap(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """sum_x min(p(x), q(x)) per position: the chance that a probabilistic draft token is accepted at temperature 1.

    Where no gradient is asked for, a few positions at a time: float32 copies of [N, V] of a large vocabulary take gigabytes.
    """
    if student_NV.requires_grad or len(student_NV) <= ROWS:
        return _overlap(student_NV, teacher_NV)
    pairs = zip(student_NV.split(ROWS), teacher_NV.split(ROWS), strict=True)
    return torch.cat([_overlap(student, teacher) for student, teacher in pairs])


def _overlap(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    q_NV, p_NV = torch.softmax(student_NV.float(), -1), torch.softmax(teacher_NV.float(), -1)
    return torch.minimum(p_NV, q_NV).sum(-1)


def agreement(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """1.0 where the most likely tokens are equal: what a greedy target accepts; per position."""
    return (student_NV.argmax(-1) == teacher_NV.argmax(-1)).float()
