from hypothesis import given
from hypothesis import strategies as st

from drafts.looping import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, find_loop, loops


@given(st.integers(1, MAX_PERIOD), st.integers(0, 20), st.integers(0, 20))
def test_every_repeated_span_is_found(period: int, before: int, after: int) -> None:
    repeats = max(MIN_REPEATS, -(-MIN_TOKENS // period))
    span = [1000 + i for i in range(period)]
    tokens = list(range(before)) + span * repeats + [5000 + i for i in range(after)]
    assert loops(tokens)


@given(st.integers(9, MAX_PERIOD))
def test_two_repeats_are_no_loop(period: int) -> None:
    assert not loops(list(range(period)) * 2 + [-1])


@given(st.lists(st.integers(0, 10**9), unique=True, max_size=200))
def test_distinct_tokens_never_loop(tokens: list[int]) -> None:
    assert not loops(tokens)


def test_a_short_run_of_one_token_is_no_loop() -> None:
    assert not loops([7] * (MIN_TOKENS - 1))
    assert loops([7] * MIN_TOKENS)


def test_a_loop_is_found_with_its_period_and_its_repeated_positions() -> None:
    assert find_loop([9, 8, *[1, 2, 3] * 8, 7]) == (3, range(5, 26))
    assert find_loop([*range(40), *[5] * 24]) == (1, range(41, 64))
