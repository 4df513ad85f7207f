"""Widths of layers: the mean is kept, the cap holds, what cannot be reached is named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import allocation
from stages.errors import InputError

DISTANCES = [0.31, 0.08, 0.05, 0.04, 0.05, 0.22]


def test_importance_is_a_sigmoid_around_the_mean():
    mean = sum(DISTANCES) / 6
    expected = [1 / (1 + math.exp(-13.1 * (rho - mean))) for rho in DISTANCES]
    assert allocation.importance(DISTANCES, 13.1) == pytest.approx(expected)
    assert allocation.importance(DISTANCES, 0) == [0.5] * 6


def test_densities_are_the_papers_until_one_would_reach_one():
    n = allocation.importance(DISTANCES, 5)
    assert allocation.densities(n, 0.5) == pytest.approx([0.5 * value / (sum(n) / 6) for value in n])
    assert max(allocation.densities(n, 0.5)) < 1


def test_the_cap_shrinks_all_deviations_alike():
    n, p = allocation.importance(DISTANCES, 13.1), 0.2
    mean = sum(n) / 6
    assert max(n) / mean * (1 - p) >= 1  # otherwise this tests nothing
    kept = allocation.densities(n, p)
    assert max(kept) == pytest.approx(1 - p * (1 - 1 / 1.05))
    assert sum(kept) / 6 == pytest.approx(1 - p)
    ratios = [(kept[i] / (1 - p) - 1) / (n[i] / mean - 1) for i in range(6)]
    assert ratios == pytest.approx([ratios[0]] * 6)
    assert sorted(range(6), key=kept.__getitem__) == sorted(range(6), key=n.__getitem__)


@given(
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12),
    st.floats(0.05, 0.9),
    st.integers(1, 16),
    st.integers(40, 90),
)
def test_widths_keep_the_mean_as_nearly_as_multiples_can(distances, sparsity, round_to, width):
    densities = allocation.densities(allocation.importance(distances, 13.1), sparsity)
    try:
        widths = allocation.ragged_widths(densities, width, sparsity, round_to, tolerance=0.5)
    except InputError:
        return
    assert all(value % round_to == 0 and round_to <= value <= width for value in widths)
    least, most = len(widths) * round_to, len(widths) * (width // round_to) * round_to
    wanted = min(max(len(widths) * width * (1 - sparsity), least), most)
    assert abs(sum(widths) - wanted) <= round_to / 2 + 1e-6


def test_a_missing_multiple_goes_to_the_layer_furthest_below():
    assert allocation.ragged_widths([0.27, 0.73, 0.5], 64, 0.5, 16, 0.1) == [16, 48, 32]
    assert allocation.ragged_widths([0.24, 0.76, 0.5], 64, 0.5, 16, 0.1) == [16, 48, 32]
    assert allocation.ragged_widths([0.02, 0.98, 0.5], 64, 0.5, 16, 0.1) == [16, 48, 32]  # one multiple at least


def test_uniform_widths_are_the_nearest_multiple():
    assert allocation.uniform_widths(3, 512, 0.3, 8, 0.02) == [360] * 3


@pytest.mark.parametrize(
    ("sparsity", "round_to", "said"),
    [
        (0.9, 128, r"sparsity 0.9 cannot be reached .* the nearest is 0\.75"),
        (0.6, 128, r"the nearest is 0\.5"),
        (0.01, 64, r"the nearest is 0\.125"),
        (0.5, 513, "round_to must be from 1 to 512"),
    ],
)
def test_what_the_rounding_cannot_reach_is_refused_with_the_nearest(sparsity, round_to, said):
    with pytest.raises(InputError, match=said):
        allocation.uniform_widths(4, 512, sparsity, round_to, 0.02)
    if sparsity != 0.6 and sparsity != 0.01:  # several layers reach finer shares
        with pytest.raises(InputError, match=said):
            allocation.ragged_widths([1 - sparsity] * 4, 512, sparsity, round_to, 0.02)


def test_standardised_scores_compete_across_layers():
    flat, steep = [1.0, 1.1, 0.9, 1.0], [0.0, 0.0, 0.0, 8.0]
    assert allocation.standardised([flat, steep], 0.75) == [0.25, 0.25]
    assert allocation.standardised([[2.0] * 4, steep], 0.875) == [0.0, 0.25]
    assert sum(allocation.standardised([flat, steep, DISTANCES[:4]], 0.5)) == pytest.approx(1.5)


@pytest.mark.parametrize("widths", [allocation.uniform_widths, None])
def test_where_no_sparsity_can_be_reached_none_is_named(widths):
    with pytest.raises(InputError, match=r"cannot be reached .*, nor any other; give a smaller round_to"):
        if widths:
            widths(4, 512, 0.5, 512, 0.02)
        else:
            allocation.ragged_widths([0.5, 0.5], 512, 0.5, 512, 0.02)
