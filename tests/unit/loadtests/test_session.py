import pytest

from loadtests.answers import Outcome
from loadtests.schedule import Request
from loadtests.session import Session, broken_step, users_at
from loadtests.settings import Objective, Shape
from tests.unit.loadtests.asking import outcome, request

STEPS = Shape(kind="step", level=1, to=3, every_s=10)


def answer(asked: Request, began_s: float) -> Outcome:
    return outcome(asked.place)


def test_requests_are_handed_out_in_order_and_the_end_waits_for_answers() -> None:
    session = Session([request(i) for i in range(2)])
    first, second = session.take(), session.take()
    assert (first, second, session.take()) == (request(0), request(1), None)
    assert (session.over, session.finished) == (True, False)
    assert first is not None
    session.carry_out(first, answer)
    assert not session.finished
    with pytest.raises(KeyboardInterrupt):  # a user that is killed in the middle
        session.carry_out(request(1), lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert session.finished
    assert [o.place for o in session.outcomes] == [0]


def test_nothing_is_handed_out_after_the_time_or_the_end() -> None:
    now = [100.0]
    session = Session([request(i) for i in range(3)], until_s=5.0, now=lambda: now[0])
    assert session.take() == request(0)
    now[0] = 105.0
    assert session.take() is None
    session.begin()
    assert session.take() == request(1)
    session.close()
    assert session.take() is None


def test_users_of_one_sort_get_theirs_in_order() -> None:
    mixed = [request(i, stream=i % 2 == 0) for i in range(4)]
    session = Session(mixed, sorts=["chat streamed"])
    assert [session.take("chat streamed"), session.take("chat whole")] == [mixed[0], None]
    assert session.take("chat streamed") == mixed[2]
    assert session.over  # what nobody asks for is not waited for


def test_users_are_whole_and_at_least_one() -> None:
    ramp = Shape(kind="ramp", level=0.2, to=3, duration_s=10)
    assert [users_at(ramp, at) for at in (0, 5, 10)] == [1, 2, 3]
    assert [users_at(Shape(level=level), 0) for level in (0.4, 0.5, 1.5, 2.6)] == [1, 1, 2, 3]


def test_the_step_that_breaks_is_judged_when_it_is_over() -> None:
    objective = Objective(ttft_s=0.2, tpot_s=0.2, share=0.5)
    good, bad = outcome(due_s=1.0), [outcome(due_s=11.0, ttft_s=1.0), outcome(due_s=12.0, ttft_s=1.0)]
    assert broken_step(STEPS, [good, *bad], 19.9, objective) is None
    assert broken_step(STEPS, [good, *bad], 20.0, objective) == 2
    assert broken_step(STEPS, [good, outcome(due_s=11.0), bad[0]], 20.0, objective) is None
    assert broken_step(STEPS, [good], 29.9, objective) is None
    assert broken_step(STEPS, [good], 30.0, objective) == 2  # nothing of the second step is answered
