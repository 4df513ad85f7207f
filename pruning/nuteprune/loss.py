"""What the student learns from its teacher: hidden states layer by layer, and the distribution of the next token.

Axis letters: B sequences, T tokens, N tokens that are no padding, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pruning.calibration import Batch
from pruning.nuteprune.resident import INTACT, Resident, Side
from pruning.scores import watching
from stages.errors import InputError

ROWS = 256
"""Tokens whose logits are held at once: [256, V] instead of [N, V], for student and teacher alike."""


class _HeadKL(torch.autograd.Function):
    """Mean over tokens of KL(p || q) of two models with one frozen head, from the states it reads, in chunks of rows.

    The gradient for the student's states, (q - p) W / (T N), is made on the way: no logits are kept.
    """

    @staticmethod
    def forward(ctx: Any, student_ND: Tensor, teacher_ND: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
        """The divergence in nats; keeps the gradient of the student's states."""
        gradient_ND = torch.empty_like(student_ND)
        total = student_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(student_ND), ROWS):
            rows = slice(start, start + ROWS)
            log_p, log_q = (
                torch.log_softmax(functional.linear(states[rows], weight_VD).float() / temperature, -1)
                for states in (teacher_ND, student_ND)
            )
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum()
            gradient_ND[rows] = (log_q.exp_().sub_(p).to(weight_VD.dtype) @ weight_VD).to(gradient_ND.dtype)
        ctx.save_for_backward(gradient_ND.div_(temperature * len(student_ND)))
        return total / len(student_ND)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient for the student's states only: neither the teacher nor the head learns."""
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].to(gradient.dtype), None, None, None


def head_kl(student_ND: Tensor, teacher_ND: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, a mean per token (the public code sums over tokens), without T^2."""
    loss: Tensor = _HeadKL.apply(student_ND, teacher_ND, weight_VD, temperature)
    return loss


@dataclass
class Signal:
    """What a teacher showed of one batch: H[1] … H[L] before the final norm, each [B, T, D], and what its head read [N, D]."""

    hidden: list[Tensor]
    states: Tensor


def _run(resident: Resident, side: Side, batch: Batch, see: Callable[[int, Tensor], None]) -> Tensor:
    """One pass; calls ``see(l, H[l])`` and returns what the head reads at tokens that are no padding [N, D].

    Padding is on the right, where causal attention never looks: no attention mask is needed.
    """
    with resident.wearing(side) as model, watching(model, see):
        states = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        mask = batch.attention_mask.to(states.device)  # of several GPUs the last one has the states
        return resident.narrowed(states)[mask.bool()]


@torch.no_grad()
def teach(resident: Resident, side: Side, batch: Batch, hidden: bool = True) -> Signal:
    """The teacher's pass: in evaluation mode, without gradient."""
    found: list[Tensor] = []
    resident.model.eval()
    states = _run(resident, side, batch, lambda index, states: found.append(states) if index and hidden else None)
    return Signal(found, states)


def _difference(student: Tensor, teacher: Tensor, mask: Tensor, relative: bool) -> Tensor:
    """Mean over tokens and dimensions of the squared difference; relative to the teacher's mean square if so."""
    mask = mask.to(student.device)

    def mean(values: Tensor) -> Tensor:
        return (values.float().square().mean(-1) * mask).sum() / mask.sum()

    found = mean(student - teacher.to(student.device))
    return found / mean(teacher.to(student.device)) if relative else found


@dataclass(frozen=True)
class Weights:
    """Weights of the losses; ``relative`` divides each layer's difference by the teacher's mean square."""

    hidden: float
    kl: float
    temperature: float
    relative: bool = False


def learn(
    resident: Resident, side: Side, batch: Batch, signal: Signal, weights: Weights
) -> tuple[Tensor, dict[str, float]]:
    """The student's pass and its loss: hidden * sum over layers of MSE + kl * T^2 * KL(teacher || student).

    Returns:
        the loss, and its two parts without their weights.

    Raises:
        InputError: a layer's difference, or the divergence, is not a number; the layer is named.
    """
    differences: list[Tensor] = []
    resident.model.train()

    def see(index: int, states: Tensor) -> None:
        if index and signal.hidden:
            differences.append(_difference(states, signal.hidden[index - 1], batch.attention_mask, weights.relative))

    states = _run(resident, side, batch, see)
    head = resident.family.head_of(resident.model)
    kl = head_kl(states.to(head.weight.device), signal.states.to(head.weight.device), head.weight, weights.temperature)
    by_layer = torch.stack([one.to(kl.device) for one in differences]) if differences else kl.new_zeros(0)
    _refuse_broken(by_layer.detach(), kl.detach(), lambda: first_broken(resident, side, batch))
    hidden = by_layer.sum()
    loss = weights.hidden * hidden + weights.kl * weights.temperature**2 * kl
    return loss, {"hidden": float(hidden.detach()), "kl": float(kl.detach())}


ADVICE = "check the target, lower the rates, or use dtype float32"
"""What to do about a loss that is not a number."""


def _refuse_broken(differences: Tensor, kl: Tensor, first_broken: Callable[[], str]) -> None:
    """Raises InputError where a loss is not a number, naming the first layer it comes from."""
    for layer, difference in enumerate(differences.tolist()):
        if not math.isfinite(difference):
            raise InputError(f"the loss of layer {layer} is not a number; {ADVICE}")
    if not math.isfinite(float(kl)):
        raise InputError(f"the divergence is not a number, first in {first_broken()}; {ADVICE}")


@torch.no_grad()
def first_broken(resident: Resident, side: Side, batch: Batch) -> str:
    """Where in a version's pass numbers stop being finite, for messages: one more pass, after a loss that is not a number."""
    broken: list[int] = []
    _run(resident, side, batch, lambda index, states: None if torch.isfinite(states).all() else broken.append(index))
    if not broken:
        return "the head or the teacher"
    return f"layer {broken[0] - 1}" if broken[0] else "the embeddings"


def learn_text(resident: Resident, side: Side, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy on the text itself: the alternative of fine-tuning. Each token but the first of a window is judged."""
    resident.model.train()
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    with resident.wearing(side) as model:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits[:, :-1]
    loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
    if not math.isfinite(float(loss.detach())):
        raise InputError(f"the cross-entropy is not a number, first in {first_broken(resident, side, batch)}; {ADVICE}")
    return loss, {"text": float(loss.detach())}


@torch.no_grad()
def check(resident: Resident, side: Side, batches: list[Batch]) -> dict[str, float]:
    """KL(target || version) in nats per token at T = 1, and how often their likeliest tokens agree."""
    kl = agreement = tokens = 0.0
    weight = resident.family.head_of(resident.model).weight
    for batch in batches:
        both = (teach(resident, one, batch, hidden=False).states for one in (INTACT, side))
        target, version = (states.to(weight.device) for states in both)
        kl += float(head_kl(version, target, weight, 1.0)) * len(target)
        same = functional.linear(target, weight).argmax(-1) == functional.linear(version, weight).argmax(-1)
        agreement, tokens = agreement + float(same.sum()), tokens + len(target)
    return {"kl": kl / tokens, "agreement": agreement / tokens, "tokens": tokens} if tokens else {}
