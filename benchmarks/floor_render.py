"""The section of RESULTS.md on the pair where many share the engine, from floor.json."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

FLOOR = 0.98
"""What the pair must not fall below, of plain decoding."""

AGAIN, IN_STEP = "plain again", "plain in step"
BESIDE = (AGAIN, IN_STEP)
"""Engines without a draft, in the table's order."""


def cells_of(rows: list[dict[str, Any]]) -> list[str]:
    """One condition: its pair and the other plain engines, with intervals, and in how many steps the pair drafted."""
    by = {row["method"]: row for row in rows}
    own = next(row for row in rows if row["method"] not in BESIDE)
    found = [
        f"{row['speedup']:.3f} ({row['low']:.3f}–{row['high']:.3f})" for row in (own, *(by[name] for name in BESIDE))
    ]
    first = f"{own['kind']}, T = {own['temperature']:g}"
    return [first, str(own["concurrency"]), str(own["turns"]), *found, f"{own['num_drafts']:,}"]


def means(rows: list[dict[str, Any]]) -> str:
    """Geometric means over all conditions."""
    names = dict.fromkeys(row["method"] for row in rows)
    found = {name: geometric_mean([row["speedup"] for row in rows if row["method"] == name]) for name in names}
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items())


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the floor is kept, as far as the intervals say."""
    own = [row for row in rows if row["method"] not in BESIDE]
    kept, below = (
        [row for row in own if found(row)] for found in (lambda r: r["low"] >= FLOOR, lambda r: r["high"] < FLOOR)
    )
    worst = min(own, key=lambda row: row["speedup"])
    return (
        f"Geometric means: {means(rows)}. Lowest of the pair: {worst['speedup']:.3f} ({worst['kind']}, T = "
        f"{worst['temperature']:g}, {worst['concurrency']} requests). Of {len(own)} intervals "
        f"{len(kept)} lie above {FLOOR:g}, {len(below)} below it, and the others on both sides of it."
    )


def floor(record: dict[str, Any]) -> str:
    """The section."""
    hardware, rows = record["hardware"], record["rows"]
    conditions = dict.fromkeys((row["kind"], row["temperature"], row["concurrency"]) for row in rows)
    table = [
        cells_of([r for r in rows if (r["kind"], r["temperature"], r["concurrency"]) == key]) for key in conditions
    ]
    heads = (
        "prompts",
        "requests at a time",
        "turns",
        "pair over plain",
        "plain once more over plain",
        "plain in step over plain",
        "steps in which the pair drafted",
    )
    return "\n\n".join(
        [
            "## The pair where many share the engine",
            "Command: `make results-floor` (file: `benchmarks/floor.json`).",
            f"Hardware: {hardware['cpu']}, {hardware['cores']} cores; revision {record['git_revision'][:12]}, {record['date']}. "
            f"Engines side by side take turns of {record['prompts_per_kind']} prompts: plain; the pair; plain once more, which "
            "says how far two engines that do the same lie apart; and plain in step, which schedules a step after the one before "
            "has ended, as vLLM does beside a proposer of one's own. Ratios of output tokens per second over plain's over all "
            "turns, in brackets bootstrap intervals (95 %) over turns, which so few turns make somewhat too narrow.",
            "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *table]),
            verdict(rows),
        ]
    )
