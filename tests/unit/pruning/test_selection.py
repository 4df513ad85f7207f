"""Scores -> kept layers, on plain numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import selection
from stages.errors import InputError

SIZES = st.integers(1, 90).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers)))


@given(SIZES)
def test_baselines_keep_the_wanted_number_of_distinct_ascending_layers(size):
    num_layers, keep = size
    for method, choose in selection.BASELINES.items():
        kept = choose(num_layers, keep)
        assert len(kept) == keep, method
        assert list(kept) == sorted(set(kept))
        assert kept[0] == 0
        assert kept[-1] < num_layers


def test_baselines_by_example():
    assert selection.first(24, 3) == (0, 1, 2)
    assert selection.first_and_last(24, 2) == (0, 23)
    assert selection.first_and_last(24, 4) == (0, 1, 2, 23)
    assert selection.first_and_last(24, 1) == (0,)
    assert selection.evenly_spaced(24, 2) == (0, 23)
    assert selection.evenly_spaced(25, 4) == (0, 8, 16, 24)
    assert selection.evenly_spaced(5, 5) == (0, 1, 2, 3, 4)


@given(st.integers(1, 12).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))), st.randoms())
def test_angular_removes_the_nearest_span(size, random):
    num_layers, keep = size
    distances = [[random.random() for _ in range(num_layers + 1)] for _ in range(num_layers + 1)]
    kept, span = selection.angular(distances, keep), num_layers - keep
    removed = [layer for layer in range(num_layers) if layer not in kept]
    assert len(kept) == keep
    if removed:
        assert removed == list(range(removed[0], removed[0] + span))
        assert distances[removed[0]][removed[0] + span] == min(distances[l][l + span] for l in range(keep + 1))  # noqa: E741


@pytest.mark.parametrize(("nearest", "kept"), [((0, 2), (2, 3)), ((1, 3), (0, 3)), ((2, 4), (0, 1))])
def test_angular_spans_reach_both_ends(nearest, kept):
    """d(l, l+n) ends *before* layer l+n: the span [2, 4) of four layers is the last one, and it must be reachable."""
    distances = [[0.5] * 5 for _ in range(5)]
    distances[nearest[0]][nearest[1]] = 0.1
    assert selection.angular(distances, 2) == kept


def test_block_influence_keeps_the_highest():
    assert selection.block_influence([0.9, 0.1, 0.3, 0.2, 0.8], 3) == (0, 2, 4)
    assert selection.block_influence([0.5, 0.5, 0.5], 2) == (1, 2)
    assert selection.block_influence([0.5, 0.4], 2) == (0, 1)


def test_greedy_keeps_what_the_first_removals_left():
    assert selection.greedy_kl(5, [3, 1, 0], 3) == (0, 2, 4)
    assert selection.greedy_kl(5, [3, 1, 0], 5) == (0, 1, 2, 3, 4)
    with pytest.raises(InputError, match="stop at 2 layers, but 1 are to be kept"):
        selection.greedy_kl(5, [3, 1, 0], 1)


@pytest.mark.parametrize("keep", [0, -3])
def test_removing_more_layers_than_there_are_is_refused(keep):
    chosen = [
        lambda: selection.first(4, keep),
        lambda: selection.first_and_last(4, keep),
        lambda: selection.evenly_spaced(4, keep),
        lambda: selection.angular([[0.0] * 5] * 5, keep),
        lambda: selection.block_influence([0.1] * 4, keep),
        lambda: selection.greedy_kl(4, [0, 1, 2, 3], keep),
    ]
    for choose in chosen:
        with pytest.raises(InputError, match=rf"{4 - keep} of 4 layers removed .* keep from 1 to 4"):
            choose()


def test_keeping_more_layers_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"keep = 5 \(remove = -1\), but the target has 4 layers"):
        selection.first(4, 5)


def test_explicit_layers():
    assert selection.explicit(4, [3, 0]) == (0, 3)
    with pytest.raises(InputError, match="layer 4 does not exist; the target's layers are 0 to 3"):
        selection.explicit(4, [0, 4])
