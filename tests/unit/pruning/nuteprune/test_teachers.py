"""Which version teaches when, against cases made by hand."""

from itertools import pairwise

import pytest

from pruning.nuteprune import teachers


def test_a_snapshot_is_due_every_percent_and_never_twice():
    taken, last = [], 0.0
    for sparsity in (0.002, 0.009, 0.011, 0.015, 0.021, 0.055, 0.056, 0.05, 0.066):
        if teachers.snapshot_due(sparsity, last, 0.01):
            taken.append(sparsity)
            last = sparsity
    assert taken == [0.011, 0.021, 0.055, 0.066]


@pytest.mark.parametrize(("num_snapshots", "teacher"), [(0, None), (9, None), (10, 0), (11, 1), (25, 15)])
def test_while_sparsity_grows_the_teacher_is_ten_snapshots_behind(num_snapshots, teacher):
    assert teachers.growing(num_snapshots, 10) == teacher


def test_after_the_target_the_teacher_slides_back_to_the_intact_model():
    """20 snapshots, 210 steps: an interval of 10. 20 whole ones are left after the first step: the teacher is at 20 - 10."""
    found = [teachers.sliding(remaining, 210, 20, 10) for remaining in range(210, 0, -1)]
    assert found[:10] == [10] * 10  # left after it 209 … 200
    assert found[100:110] == [0] * 10  # 109 … 100
    assert found[110:] == [None] * 100
    steps = [teacher for teacher in found if teacher is not None]
    assert steps == sorted(steps, reverse=True)


def test_short_slides_stay_within_the_snapshots():
    assert teachers.sliding(40, 40, 3, 10) is None  # an interval of 10: phase 4 - 10
    assert teachers.sliding(40, 40, 0, 10) is None
    assert teachers.sliding(5, 5, 3, 1) == 2  # phase 3 - 1
    assert teachers.sliding(1, 0, 3, 1) is None


@pytest.mark.parametrize("num_snapshots", [17, 40])
@pytest.mark.parametrize("steps", [1, 20, 35, 36, 75, 210])
def test_a_slide_begins_where_the_growing_ended_and_never_leaps(num_snapshots, steps):
    """Where steps // (N + 1) is rounded down, the paper's formula leaps ahead, and with fewer steps than snapshots far back."""
    found = [teachers.sliding(remaining, steps, num_snapshots, 10) for remaining in range(steps, 0, -1)]
    found = [-1 if teacher is None else teacher for teacher in found]
    largest = -(-(num_snapshots + 1) // steps)
    path = [teachers.growing(num_snapshots, 10), *found]
    assert all(0 <= before - after <= largest for before, after in pairwise(path))
    assert found[-1] == -1


def test_the_schedule_turns_when_the_target_is_reached():
    choose = teachers.numerous(10)
    assert choose(25, 100, None) == 15
    assert choose(25, 100, 100) == teachers.sliding(100, 100, 25, 10)
    assert teachers.intact(25, 100, None) is None


def test_the_target_counts_as_reached_within_half_a_snapshot():
    assert teachers.reached(0.2451, 0.25, 0.01)
    assert not teachers.reached(0.2449, 0.25, 0.01)
