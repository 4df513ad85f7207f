"""Chi-square tails against known values; cells that cover everything; false alarms and power by simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from drafts.distribution import (
    Cells,
    NextProbabilities,
    Prefix,
    build_cells,
    chi_square_tail,
    critical_value,
    detectable_distance,
    goodness_of_fit,
    rounding_noncentrality,
)

VOCAB, LENGTH = 12, 3


def language(seed: int, tilt: float = 0.0) -> NextProbabilities:
    """A made-up language: the next token's probabilities depend on the prefix; ``tilt`` favours token 0 after token 1."""

    @cache
    def row(prefix: Prefix) -> list[float]:
        chance = random.Random(f"{seed}-{prefix}")
        weights = [math.exp(1.5 * chance.gauss(0, 1)) for _ in range(VOCAB)]
        if prefix:
            weights[0] *= math.exp(tilt)
        return [weight / sum(weights) for weight in weights]

    return lambda prefixes: [row(prefix) for prefix in prefixes]


def draw(following: NextProbabilities, chance: random.Random, count: int) -> list[Prefix]:
    rows: dict[Prefix, Sequence[float]] = {}

    def one() -> Prefix:
        prefix: Prefix = ()
        for _ in range(LENGTH):
            if prefix not in rows:
                rows[prefix] = following([prefix])[0]
            prefix = (*prefix, chance.choices(range(VOCAB), rows[prefix])[0])
        return prefix

    return [one() for _ in range(count)]


@pytest.mark.parametrize(("statistic", "df"), [(3.84, 1), (0.1, 3), (10, 20), (61.1, 20), (200, 100), (1000, 900)])
def test_chi_square_tail_equals_the_incomplete_gamma_function(statistic: float, df: int) -> None:
    half = torch.tensor([df / 2, statistic / 2], dtype=torch.float64)
    assert chi_square_tail(statistic, df) == pytest.approx(float(torch.special.gammaincc(half[0], half[1])), rel=1e-9)


@pytest.mark.parametrize(("df", "rate", "known"), [(1, 0.05, 3.8415), (10, 0.01, 23.209), (100, 0.001, 149.449)])
def test_critical_values_of_the_tables(df: int, rate: float, known: float) -> None:
    assert critical_value(rate, df) == pytest.approx(known, rel=1e-4)


def test_noncentral_tail_equals_simulation() -> None:
    torch.manual_seed(0)
    normal = torch.randn(200_000, 4, dtype=torch.float64)
    normal[:, 0] += math.sqrt(3.0)
    simulated = float((normal.square().sum(1) >= 10).double().mean())
    assert chi_square_tail(10, 4, 3.0) == pytest.approx(simulated, abs=0.004)
    assert chi_square_tail(10, 4, 1e-12) == pytest.approx(chi_square_tail(10, 4))


def test_cells_cover_every_sequence_and_are_large_enough() -> None:
    following = language(0)
    cells = build_cells(following, LENGTH, 500)
    probabilities = cells.probabilities(following)
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert min(probabilities.values()) * 500 >= 5
    seen = {cells.cell_of((a, b, c)) for a in range(VOCAB) for b in range(VOCAB) for c in range(VOCAB)}
    assert seen == set(probabilities)


def test_cell_probabilities_are_sums_over_their_sequences() -> None:
    following = language(1)
    cells = build_cells(following, 2, 300)
    sums = dict.fromkeys(cells.probabilities(following), 0.0)
    for a, p in enumerate(following([()])[0]):
        for b, q in enumerate(following([(a,)])[0]):
            sums[cells.cell_of((a, b))] += p * q
    assert sums == pytest.approx(cells.probabilities(following))


def test_one_token_certain_gives_one_cell_and_no_test() -> None:
    cells = build_cells(lambda prefixes: [[1.0, 0.0] for _ in prefixes], 3, 100)
    probabilities = cells.probabilities(lambda prefixes: [[1.0, 0.0] for _ in prefixes])
    assert list(probabilities) == [cells.cell_of((0, 0, 0))]
    assert goodness_of_fit([cells.cell_of((0, 0, 0))] * 100, probabilities).p_value == 1.0


def p_values(cells: Cells, exact: NextProbabilities, drawn: NextProbabilities, runs: int, count: int) -> list[float]:
    probabilities = cells.probabilities(exact)
    chance = random.Random(7)
    samples = (draw(drawn, chance, count) for _ in range(runs))
    return [goodness_of_fit(map(cells.cell_of, part), probabilities).p_value for part in samples]


def test_false_alarms_come_as_often_as_stated() -> None:
    exact = language(2)
    found = p_values(build_cells(exact, LENGTH, 300), exact, exact, runs=200, count=300)
    for rate in (0.5, 0.1, 0.02):
        alarms = sum(p < rate for p in found)
        assert abs(alarms - 200 * rate) < 4.5 * math.sqrt(200 * rate * (1 - rate))


def test_a_shift_of_the_detectable_distance_is_detected() -> None:
    exact, shifted = language(3), language(3, tilt=1.5)
    cells = build_cells(exact, LENGTH, 2000)
    probabilities, other = cells.probabilities(exact), cells.probabilities(shifted)
    distance = sum(abs(other[cell] - p) for cell, p in probabilities.items()) / 2
    assert distance > detectable_distance(2000, len(probabilities) - 1, 1e-4, 0.99)
    assert all(p < 1e-4 for p in p_values(cells, exact, shifted, runs=20, count=2000))


def test_allowance_for_rounding_covers_what_rounding_does() -> None:
    exact, rounded = language(4), language(4, tilt=0.1)
    cells = build_cells(exact, LENGTH, 4000)
    probabilities = cells.probabilities(exact)
    allowance = rounding_noncentrality(4000, probabilities, cells.probabilities(rounded))
    assert allowance > 1
    drawn = [cells.cell_of(sequence) for sequence in draw(rounded, random.Random(1), 4000)]
    strict, lenient = (goodness_of_fit(drawn, probabilities, given) for given in (0.0, 4 * allowance))
    assert lenient.p_value > max(strict.p_value, 1e-3)
