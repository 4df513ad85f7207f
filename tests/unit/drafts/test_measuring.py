import pytest

from drafts.cells import Cell, Condition
from drafts.client import Answer
from drafts.measuring import step_cost, step_seconds
from stages.errors import EngineError


def answer(seconds: float, tokens: int = 11) -> Answer:
    return Answer("a", "code", "x", "length", 5, tokens, 1.0, 1.0 + seconds, None)


def cell(*answers: Answer) -> list[Cell]:
    return [Cell("plain", Condition("code", 1, 0.0), 0, answers, 1.0)]


def test_the_spread_of_few_steps_stays_within_what_was_seen() -> None:
    """A stall in one of two answers must not put the lower quartile below zero."""
    cost = step_cost(cell(answer(0.2), answer(9.0)), 2)
    assert 0.02 <= cost.low <= cost.seconds <= cost.high <= 0.9
    assert cost.seconds == pytest.approx(0.46)


def test_answers_that_came_in_one_chunk_say_nothing_about_a_step() -> None:
    assert step_seconds(answer(0.0)) is None
    assert step_seconds(answer(1.0, tokens=1)) is None
    with pytest.raises(EngineError, match="longer answers"):
        step_cost(cell(answer(0.0), answer(1.0)), 2)
