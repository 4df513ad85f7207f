import math

import numpy as np
import pytest

from evaluation.scores import Retention, interval, mean_score, ratio, retention, scored
from stages.errors import InputError

TIMES = 2000


def accuracy(task: str, hits: int, of: int = 200, chance: float = 0.25, asked: str = "same"):
    items = [1.0] * hits + [0.0] * (of - hits)
    return scored(task, "acc", items, asked, TIMES, 0, chance)


def perplexity(bits: float, asked: str = "same"):
    return scored("perplexity", "bits_per_byte", [bits * 100] * 5, asked, TIMES, 0, weights=[100.0] * 5)


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    score = accuracy("a", 60)
    error = math.sqrt(0.3 * 0.7 / 200)
    assert score.score == pytest.approx(0.3)
    assert score.low == pytest.approx(0.3 - 1.96 * error, abs=0.012)
    assert score.high == pytest.approx(0.3 + 1.96 * error, abs=0.012)


def test_what_is_always_the_same_has_no_width() -> None:
    assert interval([0.5] * 30, (), TIMES, 0) == (0.5, 0.5)


def test_an_interval_narrows_with_the_root_of_the_items() -> None:
    rng = np.random.default_rng(0)
    widths = [np.subtract(*interval(rng.normal(size=count).tolist(), (), TIMES, 0)) for count in (100, 1600)]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_bits_per_byte_weigh_items_by_their_bytes() -> None:
    score = scored("p", "bits_per_byte", [100.0, 300.0], "x", TIMES, 0, weights=[100.0, 100.0])
    assert score.score == 2.0
    assert (score.low, score.high) == (1.0, 3.0)


def test_retention_is_the_ratio_of_means_with_chance_and_without() -> None:
    target = [accuracy("a", 150), accuracy("b", 100, chance=0.0), perplexity(1.0)]
    own = [accuracy("a", 100), accuracy("b", 50, chance=0.0), perplexity(1.5)]
    kept = retention(own, target, TIMES, 0)
    assert kept.plain.value == pytest.approx((0.5 + 0.25) / (0.75 + 0.5))
    assert kept.above_chance.value == pytest.approx((0.25 + 0.25) / (0.5 + 0.5))
    assert kept.tasks["a"].value == pytest.approx(100 / 150)
    assert kept.bits_per_byte is not None
    assert kept.bits_per_byte.value == pytest.approx(1.5)
    assert mean_score(own) == pytest.approx(0.375)
    assert mean_score(own, above_chance=True) == pytest.approx(0.25)


def test_a_group_counts_once_and_its_tasks_by_their_items() -> None:
    parts = [accuracy("g_a", 100, of=100, chance=0), accuracy("g_b", 0, of=300, chance=0)]
    group = [part.model_copy(update={"part_of": "g"}) for part in parts]
    alone = accuracy("h", 150, of=200, chance=0)
    assert mean_score([*group, alone]) == pytest.approx((0.25 + 0.75) / 2)
    assert mean_score([*parts, alone]) == pytest.approx((1 + 0 + 0.75) / 3)
    half = [
        score.model_copy(update={"score": score.score / 2, "items": tuple(i / 2 for i in score.items)})
        for score in group
    ]
    kept = ratio(list(zip([*half, alone], [*group, alone], strict=True)), TIMES, 0)
    assert kept.value == pytest.approx((0.125 + 0.75) / (0.25 + 0.75))
    assert kept.low is not None
    assert kept.low < kept.value < kept.high


def test_a_model_keeps_all_of_itself_without_doubt() -> None:
    own = [accuracy("a", 120), accuracy("b", 77)]
    kept = retention(own, own, TIMES, 0)
    assert (kept.plain.value, kept.plain.low, kept.plain.high) == (1.0, 1.0, 1.0)
    assert kept.bits_per_byte is None


def test_guessing_keeps_nothing_above_chance() -> None:
    kept = retention([accuracy("a", 50)], [accuracy("a", 150)], TIMES, 0)
    assert kept.above_chance.value == pytest.approx(0)
    assert kept.plain.value == pytest.approx(1 / 3)


def test_a_target_no_better_than_chance_has_nothing_to_keep() -> None:
    pairs = [(accuracy("a", 60), accuracy("a", 50))]
    assert ratio(pairs, TIMES, 0, above_chance=True).value is None
    assert ratio(pairs, TIMES, 0).value == pytest.approx(1.2)


def test_the_same_items_are_drawn_for_both() -> None:
    """Items that both get wrong together make a narrower interval than the same shares from different items."""
    hits = [1.0] * 140 + [0.0] * 60
    target = [scored("a", "acc", hits, "s", TIMES, 0)]
    together = [scored("a", "acc", [1.0] * 130 + [0.0] * 70, "s", TIMES, 0)]
    apart = [scored("a", "acc", [0.0] * 60 + [1.0] * 130 + [0.0] * 10, "s", TIMES, 0)]
    near, far = (retention(own, target, TIMES, 0).plain for own in (together, apart))
    assert near.value == far.value
    assert near.high - near.low < 0.5 * (far.high - far.low)


@pytest.mark.parametrize("other", [[accuracy("b", 10)], [accuracy("a", 10, asked="other")], [perplexity(1.0)]])
def test_what_cannot_be_compared_is_refused(other: list) -> None:
    with pytest.raises(InputError):
        retention([accuracy("a", 10)] if other[0].task != "perplexity" else other, other, TIMES, 0, "target.json")


def test_a_retention_loads_back_equal() -> None:
    kept = retention([accuracy("a", 100)], [accuracy("a", 150)], TIMES, 0)
    assert Retention.model_validate_json(kept.model_dump_json()) == kept
