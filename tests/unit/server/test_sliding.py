from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.sliding import SlidingSums

ROWS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=40)


def test_another_window_keeps_what_was_added() -> None:
    sums = SlidingSums(window_s=100)
    for now in range(100):
        sums.add(now, 1)
    sums.resize(1000, 0)
    assert sums.sums(900) == (100,)
    sums.resize(10, 0)
    assert sums.sums(900) == (0,)
    sums.resize(10, 5)
    for now in range(900, 910):
        sums.add(now, 1)
    assert sums.sums(5000) == (5,), "of old ones, as many stay as are wanted at least"


@given(ROWS, st.integers(0, 200))
def test_sums_are_those_of_the_window_but_for_one_slice(rows: list[tuple[int, int]], later: int) -> None:
    """Against all rows kept: what is surely inside counts, what is surely outside does not."""
    sums, now, times = SlidingSums(window_s=100), 0, []
    for gap, value in rows:
        now += gap
        sums.add(now, value)
        times.append((now, value))
    now += later
    inside = sum(value for at, value in times if now - at < 100)
    perhaps = sum(value for at, value in times if now - at < 100 + 2 * 100 / SlidingSums.SLICES)
    assert inside <= sum(sums.sums(now)) <= perhaps


@given(ROWS, st.integers(0, 1000), st.integers(1, 30))
def test_the_latest_stay_however_old_until_there_are_enough(
    rows: list[tuple[int, int]], later: int, least: int
) -> None:
    sums, now = SlidingSums(100, keep_at_least=least), 0
    for gap, value in rows:
        now += gap
        sums.add(now, value)
    total = sum(value for _, value in rows)
    assert sum(sums.sums(now + later)) >= min(total, least)


def test_rows_may_grow_longer() -> None:
    sums = SlidingSums(10)
    sums.add(0, 1)
    sums.add(0, 1, 2, 3)
    assert sums.sums(5) == (2, 2, 3)
    assert sums.sums(50) == (0, 0, 0)
