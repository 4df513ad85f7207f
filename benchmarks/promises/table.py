"""The promises' section of RESULTS.md."""

from __future__ import annotations

from typing import Any

HEADS = ("promise", "tried", "kept", "worst", "limit", "")
SAID = (
    "wrong", "refused", "reloads", "rounds", "median_ms", "unloaded_ttfb_p99_s", "ttfb_p99_s", "requests_per_s",
    "gateway_cpu", "least_used", "tokens_per_minute", "rss_mib_start", "rss_mib_warm", "rss_mib_end", "at_rest_before",
    "at_rest_after",
)  # fmt: skip
"""Which further figures are shown beside a row."""


def figure(value: float | None, unit: str) -> str:
    """A value with its unit."""
    return "–" if value is None else f"{value:,.5g} {unit}".rstrip()


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    values = [
        f"{row['tried']:,}",
        f"{row['kept']:,}",
        figure(row["worst"], row["unit"]),
        figure(row["limit"], row["unit"]),
    ]
    return [row["promise"], *values, "kept" if row["is_kept"] else "**not kept**"]


def beside(row: dict[str, Any]) -> str:
    """What else was seen, in one line; empty where there is nothing to add."""
    found = [f"{name} {_shown(row['more'][name])}" for name in SAID if row["more"].get(name) not in (None, [])]
    chosen = [f"{name}={value}" for name, value in row["more"].get("settings", {}).items()]
    parts = [", ".join(found), f"gateway: `{' '.join(chosen)}`" if chosen else ""]
    said = "; ".join(part for part in parts if part)
    return f"- {row['promise']}: {said}" if said else ""


def _shown(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, int | float) else str(value)


def run_of(row: dict[str, Any]) -> str:
    """Where and when a row was made."""
    more = row["more"]
    hardware = more["hardware"]
    return f"{hardware['cpu']}, {hardware['cores']} cores, Python {hardware['python']}, revision {more['revision']}, {more['date']}"


def section(rows: list[dict[str, Any]]) -> str:
    """Table and remarks."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n\n".join(
        [
            "## What the gateway promises",
            "Command: `make bench-gateway`, or `python -m benchmarks.gateway_promises` alone (file: `benchmarks/gateway.json`). "
            "Each promise was tried against `understudy serve --engine-url` over loopback sockets, in front of a stand-in for "
            "an engine without a draft; client and stand-in share one core, the gateway has another. "
            f"{'; '.join(dict.fromkeys(map(run_of, rows)))}.",
            "\n".join(lines),
            "\n".join(filter(None, map(beside, rows))),
        ]
    )
