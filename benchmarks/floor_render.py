"""The section of RESULTS.md on the pair where many share the engine, from floor.json."""

from __future__ import annotations

from typing import Any

FLOOR = 0.98
"""What the pair must not fall below, of plain decoding."""

AGAIN = "plain again"
"""An engine without a draft, beside the one that all others are compared with."""


def split(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pair's rows and the other plain engine's, in the same order."""
    return [row for row in rows if row["method"] != AGAIN], [row for row in rows if row["method"] == AGAIN]


def with_interval(row: dict[str, Any]) -> str:
    """A ratio and its interval."""
    return f"{row['speedup']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def lines_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each condition: the pair and the other plain engine, and in how many steps the pair drafted."""
    own, again = split(rows)
    beside = {(row["kind"], row["temperature"], row["concurrency"]): row for row in again}
    return [
        [
            f"{row['kind']}, T = {row['temperature']:g}", str(row["concurrency"]), str(row["turns"]), with_interval(row),
            with_interval(beside[row["kind"], row["temperature"], row["concurrency"]]), f"{row['num_drafts']:,}",
        ]
        for row in sorted(own, key=lambda row: (row["concurrency"], row["kind"], row["temperature"]))
    ]  # fmt: skip


def mean_lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each number of requests."""
    own, again = split(rows)
    return [
        ["all", str(row["concurrency"]), "", with_interval(row), with_interval(other), ""]
        for row, other in zip(own, again, strict=True)
    ]


def standing(row: dict[str, Any]) -> str:
    """Where an interval lies."""
    if row["low"] >= FLOOR:
        return "above"
    return "below" if row["high"] < FLOOR else "on both sides of"


def verdict(means: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """Whether the floor is kept, as far as the intervals say."""
    said = [
        f"at {row['concurrency']} requests {with_interval(row)}: {standing(row)} {FLOOR:g}" for row in split(means)[0]
    ]
    own = split(rows)[0]
    worst = min(own, key=lambda row: row["speedup"])
    counts = {place: sum(standing(row) == place for row in own) for place in ("above", "below")}
    return (
        f"Geometric means over all kinds of load: {'; '.join(said)}. Lowest single figure of the pair: {worst['speedup']:.3f} "
        f"({worst['kind']}, T = {worst['temperature']:g}, {worst['concurrency']} requests). Of {len(own)} single intervals "
        f"{counts['above']} lie above {FLOOR:g}, {counts['below']} below it, and the others on both sides of it."
    )


def floor(record: dict[str, Any]) -> str:
    """The section."""
    hardware, rows, means = record["hardware"], record["rows"], record["means"]
    table = [*mean_lines(means), *lines_of(rows)]
    heads = (
        "prompts",
        "requests at a time",
        "turns",
        "pair over plain",
        "plain once more over plain",
        "steps in which the pair drafted",
    )
    return "\n\n".join(
        [
            "## The pair where many share the engine",
            "Command: `make results-floor` (file: `benchmarks/floor.json`).",
            f"Hardware: {hardware['cpu']}, {hardware['cores']} cores; revision {record['git_revision'][:12]}, {record['date']}. "
            f"Engines side by side take turns of {record['prompts_per_kind']} prompts: plain; the pair; and plain once more, "
            "which says how far two engines that do the same lie apart. Ratios of output tokens per second over plain's over all "
            "turns, in brackets bootstrap intervals (95 %) over turns, which so few turns make somewhat too narrow.",
            "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *table]),
            verdict(means, rows),
        ]
    )
