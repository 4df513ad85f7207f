"""The pair beside two plain engines: ratios with intervals, and what RESULTS.md says of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.floor import rows_of
from benchmarks.floor_render import AGAIN, IN_STEP, floor, verdict
from drafts.blocks import Cell, Condition
from drafts.client import Answer

BUSY = Condition("code", 8, 0.0)


def answer(tokens: int) -> Answer:
    return Answer("p", "code", "text", "length", 4, tokens, 0.1, 1.0, None)


def turns(method: str, seconds: list[float]) -> list[Cell]:
    return [Cell(method, BUSY, turn, (answer(100),), wall) for turn, wall in enumerate(seconds)]


def test_the_interval_holds_the_ratio_and_is_a_point_where_all_turns_agree() -> None:
    cells = (
        turns("plain", [1.0, 2.0, 1.0, 2.0]) + turns("draft", [2.0, 4.0, 2.0, 4.0]) + turns(AGAIN, [1.0, 1.0, 2.0, 2.0])
    )
    draft, again = rows_of(cells)
    assert draft["speedup"] == pytest.approx(0.5)
    assert (draft["low"], draft["high"]) == pytest.approx((0.5, 0.5))  # a turn's cells are drawn together
    assert again["speedup"] == pytest.approx(1.0)
    assert again["low"] < 0.9 < 1.1 < again["high"]
    assert draft["turns"] == 4
    assert draft["num_drafts"] == 0


def row(method: str, speedup: float, low: float, high: float) -> dict[str, Any]:
    return {
        "method": method, "kind": "code", "temperature": 0.0, "concurrency": 8, "turns": 4, "speedup": speedup, "low": low,
        "high": high, "num_drafts": 0,
    }  # fmt: skip


def beside(*own: dict[str, Any]) -> list[dict[str, Any]]:
    return [*own, row(AGAIN, 1.0, 0.98, 1.02), row(IN_STEP, 0.96, 0.94, 0.98)]


def test_a_loss_is_told_from_noise() -> None:
    noise = beside(row("draft", 0.97, 0.95, 0.99))
    assert "Of 1 intervals 0 lie above 0.98, 0 below it" in verdict(noise)
    assert "Of 1 intervals 1 lie above 0.98, 0 below it" in verdict(beside(row("draft", 1.0, 0.99, 1.01)))
    loss = beside(row("draft", 0.9, 0.88, 0.92))
    assert "draft 0.900, plain again 1.000, plain in step 0.960" in verdict(loss)
    assert "Of 1 intervals 0 lie above 0.98, 1 below it" in verdict(loss)
    record = {
        "rows": loss, "prompts_per_kind": 3, "hardware": {"cpu": "c", "cores": 2}, "git_revision": "a" * 40, "date": "2026-01-01",
    }  # fmt: skip
    assert len({line.count("|") for line in floor(record).splitlines() if line.startswith("|")}) == 1
    assert "| 8 | 4 | 0.900 (0.880–0.920) | 1.000 (0.980–1.020) | 0.960 (0.940–0.980) | 0 |" in floor(record)
