from __future__ import annotations

import random

import pytest

from server.acceptance import AcceptanceRecord, Missing, Usage
from server.comparison import MIN_REQUESTS, Comparison, Estimate, RatioSums, Z, difference, verdict
from server.exchange import Exchange
from server.kinds import Kind


def request(drafts: int, accepted: int, tpot_s: float | None = None, kind: Kind = Kind.PLAIN) -> Exchange:
    exchange = Exchange(lambda: 0.0, kind=kind, status="200", usage=Usage(1, 11), ended_s=1.0)
    exchange.acceptance = AcceptanceRecord(drafts, 4 * drafts, accepted) if drafts else Missing.ABSENT
    if tpot_s is not None:
        exchange.first_s, exchange.ended_s = 1.0, 1.0 + 10 * tpot_s
    return exchange


def sums_of(pairs: list[tuple[float, float]]) -> RatioSums:
    sums = RatioSums()
    for x, y in pairs:
        sums.add(x, y)
    return sums


def test_the_error_of_a_mean_is_the_textbooks() -> None:
    values = [1.0, 2.0, 4.0, 8.0] * 10
    mean = sum(values) / 40
    error = (sum((value - mean) ** 2 for value in values) / 39 / 40) ** 0.5
    found = sums_of([(1.0, value) for value in values]).estimate()
    assert found is not None
    assert (found.value, found.requests) == (mean, 40)
    assert found.error == pytest.approx(error)
    assert found.high == pytest.approx(mean + Z * error)


def test_the_error_of_a_ratio_is_what_repeating_the_experiment_shows() -> None:
    """Long requests accept less here, so that a mean of ratios would be another figure."""
    rng = random.Random(0)

    def pairs() -> list[tuple[float, float]]:
        drafts = [rng.randint(5, 50) for _ in range(100)]
        return [(x, sum(rng.random() < 1 - x / 100 for _ in range(x))) for x in drafts]

    found = [sums_of(pairs()).estimate() for _ in range(200)]
    values = [one.value for one in found if one]
    mean = sum(values) / 200
    spread = (sum((value - mean) ** 2 for value in values) / 199) ** 0.5
    stated = sum(one.error for one in found if one and one.error) / 200
    assert stated == pytest.approx(spread, rel=0.2)


def test_few_requests_have_a_figure_without_an_interval() -> None:
    found = sums_of([(1.0, 2.0)] * (MIN_REQUESTS - 1)).estimate()
    assert found is not None
    assert (found.value, found.low, found.high) == (2.0, None, None)
    assert RatioSums().estimate() is None


def test_sums_add_up() -> None:
    first, second = [(1.0, 2.0), (3.0, 1.0)], [(2.0, 2.0)]
    assert sums_of(first) + sums_of(second) == sums_of(first + second)


@pytest.mark.parametrize(
    ("figure", "value", "error", "said"),
    [("mean_acceptance_length", 1.0, 0.1, "better"), ("mean_acceptance_length", -1.0, 0.1, "worse"),
     ("tpot_s", 1.0, 0.1, "worse"), ("tpot_s", -1.0, 0.1, "better"), ("tpot_s", 0.1, 0.1, "no difference seen"),
     ("tpot_s", 0.1, None, "too few requests")],
)  # fmt: skip
def test_verdicts(figure: str, value: float, error: float | None, said: str) -> None:
    assert verdict(figure, Estimate(value, error, 100)) == said
    assert verdict(figure, None) == "too few requests"


def test_errors_of_a_difference_add_in_squares() -> None:
    found = difference(Estimate(1.0, 0.3, 50), Estimate(3.0, 0.4, 40))
    assert found is not None
    assert (found.value, found.requests) == (2.0, 40)
    assert found.error == pytest.approx(0.5)
    assert difference(None, Estimate(1.0, 0.1, 40)) is None


def test_a_better_draft_is_seen_by_kind_and_over_all() -> None:
    rng, comparison = random.Random(1), Comparison()
    for _ in range(60):
        for pool, accepted, tpot_s in (("main", 10, 0.01), ("new", 20, 0.008)):
            for kind in Kind:
                comparison.see(pool, request(20, accepted + rng.randint(-4, 4), tpot_s + rng.uniform(0, 0.001), kind))
    rows = {row["kind"]: row for row in comparison.rows(["main"], ["new"])}
    assert list(rows) == ["plain", "structured", "all"]
    for row in rows.values():
        assert row["mean_acceptance_length"]["main"]["value"] == pytest.approx(1.5, abs=0.1)
        assert row["mean_acceptance_length"]["canary"]["value"] == pytest.approx(2.0, abs=0.1)
        assert row["tpot_s"]["difference"]["value"] == pytest.approx(-0.002, abs=0.0005)
        assert {row[figure]["verdict"] for figure in ("mean_acceptance_length", "tpot_s")} == {"better"}
    assert rows["all"]["tpot_s"]["main"]["requests"] == 120


def test_kinds_of_prompts_have_rows_of_their_own_where_there_are_several() -> None:
    comparison = Comparison()
    for accepted, prompt in ((5, "code"), (15, "chat")):
        for pool in ("main", "new"):
            one = request(10, accepted)
            one.prompt_kind = prompt
            comparison.see(pool, one)
    rows = comparison.rows(["main"], ["new"])
    lengths = [(row["of"], row["kind"], row["mean_acceptance_length"]["main"]["value"]) for row in rows]
    assert lengths == [("prompt", "chat", 2.5), ("prompt", "code", 1.5), ("all", "all", 2.0)]
    assert Comparison().rows(["main"], ["new"]) == []


def test_what_is_missing_is_no_zero() -> None:
    comparison = Comparison()
    comparison.see("main", request(0, 0, 0.01))
    comparison.see("main", request(10, 5))
    (row,) = comparison.rows(["main"], ["new"])
    assert row["mean_acceptance_length"]["main"] == {"value": 1.5, "low": None, "high": None, "requests": 1}
    assert row["tpot_s"]["main"]["requests"] == 1
    assert row["tpot_s"]["canary"] is row["tpot_s"]["difference"] is None
    assert row["tpot_s"]["verdict"] == "too few requests"
