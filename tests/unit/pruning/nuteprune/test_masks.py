"""Hard-concrete masks against a slow reference, and their limits."""

import math

import pytest
import torch

from pruning.nuteprune import masks
from pruning.nuteprune.masks import Masks

ALPHAS = [-4.0, -1.5986, -0.3, 0.0, 1.2, 4.6]


def drawn(log_alpha: float, u: float) -> float:
    """One draw, step by step, with plain floats."""
    u = min(max(u, 1e-6), 1 - 1e-6)
    s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + log_alpha) / (2 / 3)))
    return min(1.0, max(0.0, s * 1.2 - 0.1))


@pytest.mark.parametrize("log_alpha", ALPHAS)
def test_draws_equal_the_formula(log_alpha):
    uniform = torch.linspace(0, 1, 101, dtype=torch.float64)
    found = masks.sample(torch.full_like(uniform, log_alpha), uniform)
    assert found.tolist() == pytest.approx([drawn(log_alpha, float(u)) for u in uniform], abs=1e-9)
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("log_alpha", ALPHAS)
def test_the_chance_to_be_open_is_that_of_the_draws(log_alpha):
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    share = (masks.sample(torch.full_like(uniform, log_alpha), uniform) > 0).double().mean()
    chance = masks.open_chance(torch.tensor(log_alpha, dtype=torch.float64))
    assert float(chance) == pytest.approx(float(share), abs=1e-4)
    assert float(chance) == pytest.approx(1 / (1 + math.exp(-log_alpha - 1.5986)), abs=1e-4)


def test_chances_stay_off_0_and_1_and_log_alphas_within_their_bound():
    assert masks.open_chance(torch.tensor([-1e9, 1e9])).tolist() == pytest.approx([1e-6, 1 - 1e-6], abs=1e-7)
    log_alphas = Masks(torch.tensor([[-9.0, 9.0]]), torch.tensor([[0.5]]))
    masks.clamp_all(log_alphas)
    assert log_alphas.groups.tolist()[0] == pytest.approx([-math.log(100), math.log(100)])
    assert log_alphas.neurons.item() == 0.5


def test_a_draw_passes_gradient_only_where_it_is_not_clipped():
    log_alpha = torch.zeros(3, requires_grad=True)
    masks.sample(log_alpha, torch.tensor([0.001, 0.5, 0.999])).sum().backward()
    assert log_alpha.grad is not None
    assert [gradient > 0 for gradient in log_alpha.grad.tolist()] == [False, True, False]


def test_the_deterministic_mask_zeroes_as_many_as_are_expected_to_be_closed():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        log_alpha = torch.randn(37, generator=generator, dtype=torch.float64) * 3
        mask = masks.deterministic(log_alpha)
        closed = round(sum(1 - 1 / (1 + math.exp(-a - 2 / 3 * math.log(11))) for a in log_alpha.tolist()))
        assert int((mask == 0).sum()) == closed
        assert log_alpha[mask == 0].max() <= log_alpha[mask > 0].min()
        soft = [1 / (1 + math.exp(-0.8 * a * 1.5)) for a in log_alpha[mask > 0].tolist()]
        assert mask[mask > 0].tolist() == pytest.approx(soft)


def test_a_layer_never_loses_its_last_unit_and_ties_do_not_add_any():
    assert int((masks.deterministic(torch.full((4,), -4.0)) > 0).sum()) == 1
    assert masks.deterministic(torch.zeros(6), zeros=4).ne(0).tolist() == [True, True, False, False, False, False]


def test_a_unit_that_is_opened_again_is_wholly_open_and_the_others_keep_their_values():
    log_alpha = torch.tensor([4.0, -4.5, -3.0, 3.0, -4.0])
    own = masks.deterministic(log_alpha)
    assert own.ne(0).tolist() == [True, False, False, True, False]
    assert masks.opened(log_alpha, 2).tolist() == own.tolist()
    assert masks.opened(log_alpha, 4).tolist() == pytest.approx([own[0].item(), 0, 1, own[3].item(), 1])
    assert masks.opened(log_alpha, 1).tolist() == pytest.approx([own[0].item(), 0, 0, 0, 0])


def test_masks_start_nearly_open():
    start = masks.initial_masks(2, 3, 8, 5, drop=0.01)
    assert start.groups.shape == (2, 3)
    assert start.hidden is not None
    assert float(start.hidden[0].detach()) == pytest.approx(math.log(99))
    assert float(masks.open_chance(start.neurons).min().detach()) > 0.99


def test_draws_come_from_the_generator_alone():
    log_alphas = masks.initial_masks(2, 3, 8, None, drop=0.5)
    first, again = (masks.sample_all(log_alphas, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.neurons, again.neurons)
    assert first.hidden is None
