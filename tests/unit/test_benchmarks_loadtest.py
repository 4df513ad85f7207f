"""The load test's section of RESULTS.md, from a record as `understudy loadtest` writes it."""

from __future__ import annotations

from benchmarks.loadtest_render import HEADS, cells, loadtest
from loadtests.figures import Result
from loadtests.running import record_of
from loadtests.settings import LoadSettings
from tests.unit.loadtests.asking import drafted, outcome

HARDWARE = {"cpu": "one", "cores": 2}


def record() -> dict:
    """Two turns of each server under one closed and one open load."""
    results = []
    for number in (0, 1):
        for condition, loop, level in (("closed-4", "closed", 4.0), ("open-0.5", "open", 0.5)):
            results += [
                Result("plain", condition, loop, level, number, 0.0, (outcome(), outcome())),
                Result("draft", condition, loop, level, number, 0.0, (drafted(0, 4, 8, 2), outcome())),
            ]
    return {**record_of(results, LoadSettings(), None), "hardware": HARDWARE}


def test_every_load_and_server_has_its_row() -> None:
    text = loadtest(record())
    rows = [line for line in text.splitlines() if line.startswith(("| 4 users", "| 0.5 arrivals/s"))]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| 4 users", "plain"], ["| 4 users", "draft"], ["| 0.5 arrivals/s", "plain"], ["| 0.5 arrivals/s", "draft"],
    ]  # fmt: skip
    assert all(row.count("|") == len(HEADS) + 1 for row in rows)


def test_a_run_whose_generator_was_not_measured_says_that_it_is_not_to_be_published() -> None:
    assert "Not publishable" in loadtest(record())


def test_what_is_missing_is_a_dash_and_not_zero() -> None:
    row = dict.fromkeys(record()["rows"][0]) | {
        "level": None, "condition": "ramp", "target": "plain", "requests": 0, "errors": 0, "loop": "closed",
    }  # fmt: skip
    found = cells(row)
    assert found[:4] == ["ramp", "plain", "0", "0"]
    assert set(found[4:]) == {"–"}
