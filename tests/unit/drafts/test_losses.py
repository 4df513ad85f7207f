import math
from collections.abc import Callable

import pytest
import torch

from drafts.losses import ROWS, agreement, cross_entropy, forward_kl, negative_log_overlap, overlap, reverse_kl


def logits(count: int = 6, vocabulary: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def test_kl_equals_a_slow_sum_over_tokens() -> None:
    student, teacher = logits(seed=1), logits(seed=2)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    total = 0.0
    for s, t, w in zip(student.double(), teacher.double(), weights.tolist(), strict=True):
        p = [math.exp(x) / sum(math.exp(y) for y in t.tolist()) for x in t.tolist()]
        q = [math.exp(x) / sum(math.exp(y) for y in s.tolist()) for x in s.tolist()]
        total += w * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert forward_kl(student, teacher, weights).item() == pytest.approx(total / 5.5, rel=1e-4)


def test_kl_to_itself_is_zero_and_else_positive() -> None:
    ones = torch.ones(6)
    assert forward_kl(logits(), logits(), ones).item() == pytest.approx(0.0, abs=1e-6)
    assert forward_kl(logits(seed=3), logits(), ones).item() > 0.1


def test_the_gradient_of_kl_is_that_of_the_written_out_formula() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    ours, theirs = logits(seed=1).requires_grad_(), logits(seed=1).requires_grad_()
    (3 * forward_kl(ours, logits(seed=2), weights)).backward()
    log_p, log_q = torch.log_softmax(logits(seed=2), -1), torch.log_softmax(theirs, -1)
    (3 * (weights * (log_p.exp() * (log_p - log_q)).sum(-1)).sum() / weights.sum()).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_weights_of_zero_hide_a_position() -> None:
    labels, weights = torch.zeros(6, dtype=torch.int64), torch.tensor([1.0, 1, 1, 1, 1, 0])
    changed = logits()
    changed[5] += torch.arange(11.0) * 50
    assert cross_entropy(logits(), labels, weights) == cross_entropy(changed, labels, weights)


def test_overlap_is_one_minus_total_variation() -> None:
    p, q = torch.softmax(logits(seed=1), -1), torch.softmax(logits(seed=2), -1)
    variation = 0.5 * (p - q).abs().sum(-1)
    assert torch.allclose(overlap(logits(seed=2), logits(seed=1)), 1 - variation, atol=1e-6)


def test_overlap_is_the_same_a_few_positions_at_a_time() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(ROWS + 3, 11), torch.randn(ROWS + 3, 11)
    whole = overlap(student.clone().requires_grad_(), teacher).detach()
    assert torch.equal(overlap(student, teacher), whole)


def test_agreement_compares_the_most_likely_tokens() -> None:
    student, teacher = torch.eye(3), torch.eye(3)[[0, 2, 2]]
    assert agreement(student, teacher).tolist() == [1.0, 0.0, 1.0]


def test_reverse_kl_is_kl_with_the_roles_exchanged() -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    exchanged = forward_kl(logits(seed=2), logits(seed=1), weights)
    assert reverse_kl(logits(seed=1), logits(seed=2), weights).item() == pytest.approx(exchanged.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, negative_log_overlap])
def test_following_the_gradient_raises_the_overlap_where_it_counts(loss: Callable[..., torch.Tensor]) -> None:
    student, weights = logits(seed=1).requires_grad_(), torch.tensor([1.0, 1, 1, 1, 1, 0])
    before = overlap(student, logits(seed=2)).detach()
    loss(student, logits(seed=2), weights).backward()
    assert student.grad is not None
    after = overlap(student - 0.5 * student.grad, logits(seed=2)).detach()
    assert (after[:5] > before[:5]).all()
    assert after[5] == before[5]


def test_a_draft_that_is_never_right_has_a_finite_loss() -> None:
    one, other = torch.full((1, 4), -200.0), torch.full((1, 4), -200.0)
    one[0, 0] = other[0, 1] = 200.0
    assert math.isfinite(negative_log_overlap(one, other, torch.ones(1)).item())
