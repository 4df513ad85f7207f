"""The penalty, and that its multipliers grow against the masks."""

import pytest
import torch

from pruning.nuteprune.lagrangian import initial_multipliers, multiplier_optimizer, penalty, ramp


def test_the_aim_grows_linearly_to_the_wanted_sparsity():
    assert [ramp(0.4, done, 0.5) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.2, 0.4, 0.4])
    assert ramp(0.4, 0.0, 0.0) == 0.4


def test_the_penalty_equals_its_formula():
    found = penalty(torch.tensor(0.3), 0.5, torch.tensor([2.0, 5.0]))
    assert float(found) == pytest.approx(2 * -0.2 + 5 * 0.04)


@pytest.mark.parametrize(("sparsity", "sign"), [(0.1, -1), (0.6, 1)])
def test_multipliers_are_maximised_and_push_the_sparsity_to_its_aim(sparsity, sign):
    multipliers, optimizer = initial_multipliers(), None
    optimizer = multiplier_optimizer(multipliers, 0.1)
    at = torch.tensor(sparsity, requires_grad=True)
    before = float(penalty(at, 0.3, multipliers).detach())
    for _ in range(5):
        optimizer.zero_grad()
        penalty(at, 0.3, multipliers).backward()
        optimizer.step()
    after = penalty(at, 0.3, multipliers)
    assert float(after.detach()) > before == 0
    assert multipliers[0] * sign > 0
    assert multipliers[1] > 0
    at.grad = None
    after.backward()
    assert at.grad is not None
    assert float(at.grad) * sign > 0  # descending on the masks moves the sparsity towards the aim


def test_both_multipliers_start_at_0():
    assert initial_multipliers().tolist() == [0, 0]
