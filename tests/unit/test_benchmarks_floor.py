"""The pair beside two plain engines: ratios with intervals, and what RESULTS.md says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.floor import means_of, rows_of
from benchmarks.floor_render import AGAIN, floor, verdict
from drafts.blocks import Cell, Condition
from drafts.client import Answer

BUSY = Condition("code", 8, 0.0)


def answer(tokens: int) -> Answer:
    return Answer("p", "code", "text", "length", 4, tokens, 0.1, 1.0, None)


def turns(method: str, seconds: list[float], condition: Condition = BUSY) -> list[Cell]:
    return [Cell(method, condition, turn, (answer(100),), wall) for turn, wall in enumerate(seconds)]


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


def test_the_mean_of_a_number_of_requests_is_over_its_kinds_of_load() -> None:
    chat = replace(BUSY, kind="chat")
    cells = turns("plain", [1.0, 1.0]) + turns("draft", [0.5, 0.5]) + turns("plain", [1.0, 1.0], chat)
    cells += turns("draft", [8.0, 8.0], chat) + turns("plain", [1.0], replace(BUSY, concurrency=16))
    cells += turns("draft", [4.0], replace(BUSY, concurrency=16))
    eight, sixteen = means_of(cells)
    assert (eight["concurrency"], sixteen["concurrency"]) == (8, 16)
    assert eight["speedup"] == pytest.approx(0.5)  # the geometric mean of 2 and 1/8
    assert (eight["low"], eight["high"]) == pytest.approx((0.5, 0.5))
    assert sixteen["speedup"] == pytest.approx(0.25)


def row(method: str, speedup: float, low: float, high: float) -> dict[str, Any]:
    return {
        "method": method, "kind": "code", "temperature": 0.0, "concurrency": 8, "turns": 4, "speedup": speedup, "low": low,
        "high": high, "num_drafts": 0,
    }  # fmt: skip


def beside(*own: dict[str, Any]) -> list[dict[str, Any]]:
    return [*own, row(AGAIN, 1.0, 0.98, 1.02)]


def test_a_loss_is_told_from_noise() -> None:
    noise = beside(row("draft", 0.97, 0.95, 0.99))
    assert "at 8 requests 0.970 (0.950–0.990): on both sides of 0.98" in verdict(noise, noise)
    assert "Of 1 single intervals 0 lie above 0.98, 0 below it" in verdict(noise, noise)
    even = beside(row("draft", 1.0, 0.99, 1.01))
    assert "at 8 requests 1.000 (0.990–1.010): above 0.98" in verdict(even, noise)
    assert "Of 1 single intervals 1 lie above 0.98, 0 below it" in verdict(noise, even)
    loss = beside(row("draft", 0.9, 0.88, 0.92))
    assert "below 0.98" in verdict(loss, noise)
    assert "Of 1 single intervals 0 lie above 0.98, 1 below it" in verdict(noise, loss)
    record = {
        "means": even, "rows": loss, "prompts_per_kind": 3, "hardware": {"cpu": "c", "cores": 2}, "git_revision": "a" * 40,
        "date": "2026-01-01",
    }  # fmt: skip
    said = floor(record)
    assert len({line.count("|") for line in said.splitlines() if line.startswith("|")}) == 1
    assert "| all | 8 |  | 1.000 (0.990–1.010) | 1.000 (0.980–1.020) |  |" in said
    assert "| code, T = 0 | 8 | 4 | 0.900 (0.880–0.920) | 1.000 (0.980–1.020) | 0 |" in said
