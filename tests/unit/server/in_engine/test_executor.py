"""How many threads compute a step; the executor itself is tried by every test that starts an engine on few cores."""

import pytest

from server.in_engine.executor import MUCH_WORK, Threads


@pytest.mark.parametrize(("every", "expected"), [(2, [1, 1, 2, 1]), (1, [1, 1, 1, 1])])
def test_a_step_with_much_work_takes_all_cores_and_the_next_one_the_few_again(every: int, expected: list[int]) -> None:
    taken: list[int] = []
    threads = Threads(few=1, every=every, weights=MUCH_WORK // 10, set_number=taken.append)
    for num_tokens in (1, 9, 10, 1):
        threads.take(num_tokens)
    assert taken == expected


def test_of_a_large_model_a_single_token_is_much_work() -> None:
    taken: list[int] = []
    Threads(few=3, every=4, weights=MUCH_WORK, set_number=taken.append).take(1)
    assert taken == [4]


def test_an_engine_that_was_given_more_threads_than_it_may_use_cores_keeps_them() -> None:
    taken: list[int] = []
    threads = Threads(few=4, every=2, weights=MUCH_WORK, set_number=taken.append)
    threads.take(1)
    assert taken == [4]
