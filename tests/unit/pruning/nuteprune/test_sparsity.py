"""Counting what masks remove, and shaping it for export."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.nuteprune.masks import BOUND, Masks, deterministic_all
from pruning.nuteprune.sparsity import (
    apportion,
    check_reachable,
    counts,
    expected,
    final_masks,
    realised,
    units_of,
)
from stages.errors import InputError
from tests.unit.pruning import pico

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UNITS = units_of(pico.LLAMA.config())


def random_alphas(seed: int = 0, hidden: bool = False) -> Masks:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * 2).clamp(-BOUND, BOUND)

    return Masks(draw(5, 2), draw(5, 48), draw(32) if hidden else None)


@pytest.mark.parametrize("name", ["llama-tied", "llama-biases", "qwen3-tied", "qwen3-untied"])
def test_only_linear_weights_of_the_layers_count(name):
    case = next(case for case in pico.CASES if case.name == name)
    model = case.model()
    weights = sum(p.numel() for key, p in model.named_parameters() if key.split(".")[-2] in LINEAR and p.ndim == 2)
    assert units_of(model.config).total == weights


def test_every_head_is_a_group_of_its_own_without_grouped_queries():
    units = units_of(pico.LLAMA.config(num_key_value_heads=4))
    assert (units.groups, units.group_weights) == (4, 4 * 8)


@pytest.mark.parametrize("hidden", [False, True])
def test_expected_is_realised_where_chances_are_sure(hidden):
    alphas = random_alphas(hidden=hidden)
    sure = Masks(**{name: torch.where(tensor > 0, 60.0, -60.0) for name, tensor in alphas.tensors().items()})
    groups, neurons, dimensions = counts(Masks(**{name: t.clamp(0, 1) for name, t in sure.tensors().items()}))
    found = realised(groups, neurons, 32 if dimensions is None else dimensions, UNITS)
    assert float(expected(sure, UNITS)) == pytest.approx(found, abs=1e-4)


def test_expected_is_the_mean_of_what_draws_remove():
    """Against the slow way: count the weights that drawn masks leave on, often."""
    from pruning.nuteprune.masks import sample_all

    alphas, generator, total = random_alphas(3), torch.Generator().manual_seed(0), 0.0
    for _ in range(400):
        groups, neurons, _ = counts(sample_all(alphas, generator))
        total += realised(groups, neurons, 32, UNITS)
    assert float(expected(alphas, UNITS)) == pytest.approx(total / 400, abs=0.01)


@given(st.lists(st.integers(1, 48), min_size=1, max_size=9), st.sampled_from([1, 2, 4, 8]), st.floats(0.05, 1.0))
def test_apportioned_widths_meet_the_total_in_multiples_within_bounds(sizes, multiple, share):
    total = max(share * 48, multiple) * len(sizes)
    found = apportion([max(size, multiple) for size in sizes], total, multiple, 48)
    assert all(width % multiple == 0 and multiple <= width <= 48 for width in found)
    assert abs(sum(found) - total) <= multiple / 2 + 1e-6


def test_larger_masks_get_larger_widths():
    assert apportion([10, 20, 40], 35, 1, 48) == [5, 10, 20]
    assert apportion([10, 48, 48], 120, 1, 48) == [24, 48, 48]


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("export", ["ragged", "uniform"])
def test_final_masks_meet_the_wanted_sparsity_and_keep_the_highest(export, multiple):
    alphas = random_alphas(5)
    final = final_masks(alphas, UNITS, 0.4, export, multiple)
    groups, neurons, _ = counts(final)
    assert realised(groups, neurons, 32, UNITS) == pytest.approx(0.4, abs=0.03 if multiple > 1 else 0.01)
    assert all(width % multiple == 0 for width in neurons)
    assert export == "ragged" or (len(set(groups)), len(set(neurons))) == (1, 1)
    for row, mask in zip(alphas.neurons, final.neurons, strict=True):
        assert row[mask > 0].min() >= row[mask == 0].max()


def test_a_search_that_went_too_far_leaves_no_unit_that_is_kept_and_next_to_nothing():
    alphas = random_alphas(8)
    alphas.neurons[:, 12:] = -BOUND
    final = final_masks(alphas, UNITS, 0.2, "ragged", 1)
    again = (final.neurons > 0) & (deterministic_all(alphas).neurons == 0)
    assert int(again.sum()) > 20
    assert (final.neurons[again] == 1).all()


def test_the_masks_own_sparsity_is_kept_where_nothing_is_wanted():
    alphas = random_alphas(6)
    final = final_masks(alphas, UNITS, None, "ragged", 1)
    groups, neurons, _ = counts(final)
    assert realised(groups, neurons, 32, UNITS) == pytest.approx(float(expected(alphas, UNITS)), abs=0.03)


def test_hidden_dimensions_stay_a_multiple_of_the_heads():
    final = final_masks(random_alphas(7, hidden=True), units_of(pico.LLAMA.config(), True), 0.6, "ragged", 1)
    _, _, hidden = counts(final)
    assert hidden is not None
    assert hidden % 4 == 0


def test_an_unreachable_sparsity_names_the_nearest():
    check_reachable(0.5, UNITS, "ragged", 1, hidden=False)
    with pytest.raises(InputError, match=r"sparsity 0\.99 cannot be reached.*nearest reachable is 0\.[78]"):
        check_reachable(0.99, UNITS, "ragged", 1, hidden=False)
    with pytest.raises(InputError, match=r"multiple of 24 \(export uniform\); the nearest reachable is 0\.\d+"):
        check_reachable(0.05, UNITS, "uniform", 24, hidden=False)
    with pytest.raises(InputError, match="multiple_of = 7 does not divide the target's 48 channels"):
        check_reachable(0.3, UNITS, "ragged", 7, hidden=False)


def test_plain_models_have_the_groups_that_their_family_allows():
    odd = pico.LLAMA.config(num_attention_heads=8, num_key_value_heads=8)
    assert units_of(odd).plain_groups == (1, 2, 4, 8)
    qwen2 = next(case for case in pico.CASES if case.name == "qwen2-tied")
    assert units_of(qwen2.config()).plain_groups == (2,)
    qwen3 = next(case for case in pico.CASES if case.name == "qwen3-tied")
    assert units_of(qwen3.config()).plain_groups == (1, 2)
