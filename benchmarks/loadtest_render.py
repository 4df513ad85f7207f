"""The section of RESULTS.md on the reference pair under load, from loadtest.json."""

from __future__ import annotations

from typing import Any

from loadtests.report import caveats, generator_lines, verdict, warning

HEADS = (
    "load", "server", "requests", "failed", "under way", "tokens/s",
    "gain", "goodput", "ttft ms p50", "p95", "p99",
    "ms/token p50", "p95", "p99", "end to end ms p50", "p95", "accept.", "length",
)  # fmt: skip

LEVELS = {"closed": "{:g} users", "open": "{:g} arrivals/s"}


def gain(row: dict[str, Any]) -> str:
    """A server's gain over plain with its range over turns."""
    if row.get("gain") is None:
        return "–"
    low, high = row.get("gain_low"), row.get("gain_high")
    return f"{row['gain']:.2f}" + (f" ({low:.2f}–{high:.2f})" if low is not None and high is not None else "")


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""

    def number(key: str, scale: float, form: str) -> str:
        return "–" if row.get(key) is None else format(row[key] * scale, form)

    load = row["condition"] if row["level"] is None else LEVELS[row["loop"]].format(row["level"])
    return [
        "1 user" if load == "1 users" else load, row["target"], str(row["requests"]), str(row["errors"]),
        number("under_way", 1, ".1f"), number("tokens_per_s", 1, ".0f"), gain(row),
        number("goodput", 1, ".0%"), *(number(f"ttft_s_p{p}", 1e3, ".0f") for p in (50, 95, 99)),
        *(number(f"tpot_s_p{p}", 1e3, ".1f") for p in (50, 95, 99)), *(number(f"e2e_s_p{p}", 1e3, ".0f") for p in (50, 95)),
        number("acceptance_rate", 1, ".2f"), number("mean_acceptance_length", 1, ".2f"),
    ]  # fmt: skip


def loadtest(record: dict[str, Any]) -> str:
    """The section, from the record that ``understudy loadtest`` wrote."""
    hardware, settings = record["hardware"], record["settings"]
    objective = settings["objective"]
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in record["rows"]]
    parts = [
        "## The reference pair under load",
        "Command: `make results-loadtest` (file: `benchmarks/loadtest.json`; what each request took is in it).",
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores, the load generator on the same ones. Eager engines, one plain "
        f"and one with the draft, asked the same in turns ({settings['turns']} of each), greedy, seed {settings['seed']}, "
        f"{record['date']}. Gain: output tokens per second over plain's with a number of users, plain's median end-to-end time "
        "over the draft's with a rate of arrivals; in brackets the range over turns. *Under way*: requests at a time, on average. "
        "Goodput: share of requests with the first token "
        f"within {1e3 * objective['ttft_s']:g} ms of when the request was due and at most "
        f"{1e3 * objective['tpot_s']:g} ms per output token.",
        "\n".join(lines),
        *([warning(record)] if warning(record) else []),
        "\n".join(f"- {line}" for line in [*verdict(record), *generator_lines(record), *caveats(record)]),
    ]  # fmt: skip
    return "\n\n".join(parts)
