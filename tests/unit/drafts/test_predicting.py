import pytest

from drafts.predicting import acceptance_length, cost_split
from tests.unit.drafts.test_choosing import costs


def test_where_the_time_of_a_step_goes() -> None:
    split = cost_split(costs(plain=0.010, verify=0.012, large=0.018), 1)
    assert split is not None
    assert split.verify == pytest.approx(1.2)
    assert (split.verify_low, split.verify_high) == (pytest.approx(1.08), pytest.approx(1.44))
    assert split.draft == pytest.approx(0.1)
    assert cost_split([cost for cost in costs() if cost.method != "verify"], 1) is None


def test_acceptance_length_of_a_shorter_run_is_read_off_a_longer_one() -> None:
    histogram = (10, 20, 30, 40)
    assert acceptance_length(histogram, 3) == pytest.approx(1 + (20 + 60 + 120) / 100)
    assert acceptance_length(histogram, 1) == pytest.approx(1 + 90 / 100)
