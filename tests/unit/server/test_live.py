from __future__ import annotations

import pytest

from server.acceptance import AcceptanceRecord, Missing, Usage
from server.exchange import Exchange
from server.live import PoolFigures, Throughput, accepted_by_position, speedups


def answered(acceptance: AcceptanceRecord | Missing, tokens: int = 10) -> Exchange:
    return Exchange(lambda: 0.0, acceptance=acceptance, status="200", usage=Usage(1, tokens), first_s=1.0, ended_s=2.0)


def test_positions_are_counted_from_the_histogram() -> None:
    record = AcceptanceRecord(34, 136, 13, (24, 9, 0, 0, 1))
    assert accepted_by_position(record) == [10, 1, 1, 1]
    assert sum(accepted_by_position(record)) == record.num_accepted_tokens
    assert accepted_by_position(AcceptanceRecord(34, 136, 13)) == []


def test_figures_of_a_pool_are_ratios_of_sums() -> None:
    figures = PoolFigures()
    figures.see(0, answered(AcceptanceRecord(10, 20, 12, (3, 2, 5))))
    figures.see(1, answered(AcceptanceRecord(30, 60, 0, (30, 0, 0))))
    figures.see(2, answered(Missing.ABSENT))
    found = figures.as_dict(2)
    assert (found["drafts"], found["acceptance_rate"], found["mean_acceptance_length"]) == (40, 12 / 80, 1 + 12 / 40)
    assert found["acceptance_by_position"] == [7 / 40, 5 / 40]
    assert found["tpot_s"] == pytest.approx(1 / 9)


def test_what_was_not_seen_is_none() -> None:
    assert PoolFigures().as_dict(0) == {
        "drafts": 0, "draft_tokens_per_draft": None,
        "acceptance_rate": None, "mean_acceptance_length": None, "acceptance_by_position": [],
        "tpot_s": None,
    }  # fmt: skip


def test_rates_are_over_the_window_as_far_as_it_was_seen() -> None:
    throughput = Throughput()
    for now in range(11):
        throughput.see(now, answered(Missing.ABSENT, tokens=20))
    assert throughput.as_dict(10)["output_tokens_per_s"] == 22
    assert throughput.as_dict(1000) == {"requests_per_s": 0, "output_tokens_per_s": 0, "window_s": 60}


def test_speedups_are_said_only_where_they_are_known() -> None:
    assert speedups(1.5, 2.0, 1.0, 0.01, 0.02) == {"expected": 1.5, "from_acceptance": 0.75, "measured": 2.0}
    assert speedups(1.5, 2.0, None, None, 0.02) == {"expected": 1.5, "from_acceptance": None, "measured": None}
