import pytest

from drafts.choosing import Acceptance, ChooseSettings, Measurements, StepCost, acceptance_length, choose
from stages.errors import InputError


def cost(tokens: int, seconds: float) -> StepCost:
    return StepCost(num_speculative_tokens=tokens, seconds=seconds, low=seconds, high=seconds)


def measurements(
    histogram: tuple[int, ...], plain: float = 0.010, small: float = 0.012, large: float = 0.016
) -> Measurements:
    costs = (cost(0, plain), cost(2, small), cost(6, large))
    accepted = (Acceptance(kind="code", temperature=0.0, histogram=histogram),)
    return Measurements(concurrency=1, costs=costs, acceptances=accepted)


def test_a_perfect_draft_takes_all_tokens() -> None:
    choice = choose(measurements((0, 0, 0, 0, 0, 0, 100)), ChooseSettings())
    assert choice.num_speculative_tokens == 6
    assert choice.expected is not None
    assert choice.expected.speedup == pytest.approx(7 * 10 / 16)
    assert choice.expected.acceptance_rate == pytest.approx(1.0)


def test_a_useless_draft_is_refused() -> None:
    choice = choose(measurements((100, 0, 0, 0, 0, 0, 0)), ChooseSettings())
    assert choice.num_speculative_tokens is None
    assert choice.expected is None
    assert "No draft" in choice.reason


def test_a_saturated_engine_gets_no_draft() -> None:
    """Where verifying K + 1 tokens costs K + 1 steps, even a good draft loses."""
    choice = choose(measurements((20, 20, 20, 20, 10, 5, 5), plain=0.010, small=0.031, large=0.073), ChooseSettings())
    assert choice.num_speculative_tokens is None


def test_a_middling_draft_stops_where_acceptance_thins_out() -> None:
    choice = choose(measurements((30, 30, 20, 10, 5, 3, 2)), ChooseSettings())
    assert choice.num_speculative_tokens is not None
    assert 2 <= choice.num_speculative_tokens <= 5
    exact = choose(measurements((30, 30, 20, 10, 5, 3, 2)), ChooseSettings(indifference=0))
    assert max(exact.predicted, key=lambda pair: pair[1])[0] == exact.num_speculative_tokens


def test_fewer_tokens_are_taken_where_more_gain_next_to_nothing() -> None:
    flat = measurements((400, 300, 200, 96, 2, 1, 1), plain=0.010, small=0.012, large=0.012)
    exact = choose(flat, ChooseSettings(indifference=0))
    choice = choose(flat, ChooseSettings())
    assert exact.num_speculative_tokens == 6
    assert choice.num_speculative_tokens == 3
    assert choice.expected is not None
    assert choice.expected.speedup == pytest.approx(dict(choice.predicted)[3])


def test_acceptance_length_of_a_shorter_run_is_read_off_a_longer_one() -> None:
    histogram = (10, 20, 30, 40)
    assert acceptance_length(histogram, 3) == pytest.approx(1 + (20 + 60 + 120) / 100)
    assert acceptance_length(histogram, 1) == pytest.approx(1 + 90 / 100)


def test_the_gain_that_is_asked_for_decides() -> None:
    useful = measurements((30, 30, 20, 10, 5, 3, 2))
    best = max(s for _, s in choose(useful, ChooseSettings()).predicted)
    assert choose(useful, ChooseSettings(min_gain=best)).num_speculative_tokens is None


def test_no_step_is_promised_to_be_cheaper_than_a_plain_one() -> None:
    """The line through 30 and 38 ms at K = 5 and 6 is negative at K = 1."""
    costs = (cost(0, 0.028), cost(5, 0.030), cost(6, 0.038))
    accepted = (Acceptance(kind="code", temperature=0.0, histogram=(50, 50, 0, 0, 0, 0, 0)),)
    choice = choose(Measurements(concurrency=1, costs=costs, acceptances=accepted), ChooseSettings())
    assert max(speedup for _, speedup in choice.predicted) == pytest.approx(1.5)


def test_measurements_that_cannot_decide_are_refused() -> None:
    with pytest.raises(InputError, match="no steps"):
        choose(measurements((0, 0, 0, 0)), ChooseSettings())
    one = Measurements(
        concurrency=1, costs=(cost(0, 0.01), cost(2, 0.012)), acceptances=measurements((1, 1)).acceptances
    )
    with pytest.raises(InputError, match="two different"):
        choose(one, ChooseSettings())
