"""A load test as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, BinaryIO

from loadtests.ceiling import PUBLISHABLE, USERS
from loadtests.pictures import draw_acceptance, draw_gain, draw_goodput, draw_latency, draw_throughput, levelled

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p.lead { font-size: 1.1rem } .note { color: #5c6773; font-size: .9rem } .warning { background: #fbe9d7; padding: .5rem .8rem }
img { max-width: 100% } table { border-collapse: collapse; font-size: .85rem; display: block; overflow-x: auto }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e2e6ea; white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
"""

COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("requests", "requests", 1, ".0f"), ("failed", "errors", 1, ".0f"), ("under way", "under_way", 1, ".1f"),
    ("requests/s", "requests_per_s", 1, ".2f"),
    ("tokens/s", "tokens_per_s", 1, ".1f"), ("gain", "gain", 1, ".2f"), ("goodput", "goodput", 1, ".1%"),
    ("good/s", "good_per_s", 1, ".2f"), ("TTFT p50, ms", "ttft_s_p50", 1e3, ".0f"), ("p95", "ttft_s_p95", 1e3, ".0f"),
    ("p99", "ttft_s_p99", 1e3, ".0f"), ("per token p50, ms", "tpot_s_p50", 1e3, ".1f"), ("p95", "tpot_s_p95", 1e3, ".1f"),
    ("p99", "tpot_s_p99", 1e3, ".1f"), ("chunk gap p50, ms", "gap_s_p50", 1e3, ".1f"), ("p99", "gap_s_p99", 1e3, ".1f"),
    ("end to end p50, ms", "e2e_s_p50", 1e3, ".0f"), ("p95", "e2e_s_p95", 1e3, ".0f"), ("p99", "e2e_s_p99", 1e3, ".0f"),
    ("accepted", "acceptance_rate", 1, ".1%"), ("tokens/step", "mean_acceptance_length", 1, ".2f"),
    ("sent late p99, ms", "late_s_p99", 1e3, ".1f"),
)  # fmt: skip
"""Head, figure, scale, format."""

LOOPS = {"closed": "users at a time", "open": "arrivals a second"}


def cells(row: dict[str, Any]) -> list[str]:
    """A row's cells as text; a dash where there is no figure."""
    shown = [format(row[key] * scale, form) if row.get(key) is not None else "–" for _, key, scale, form in COLUMNS]
    return [row["condition"], row["target"], *shown]


def verdict(record: dict[str, Any]) -> list[str]:
    """What came of it, a sentence for each thing."""
    lines = []
    for name, loops in record["stops_paying"].items():
        for loop, level in loops.items():
            own = [r for r in levelled(record["rows"]) if (r["target"], r["loop"]) == (name, loop) and r.get("gain")]
            if not own:
                continue
            gains = ", ".join(f"{row['gain']:.2f}x at {row['level']:g}" for row in own)
            ends = (
                f"stops paying at {level:g}" if level is not None else f"still pays at {max(r['level'] for r in own):g}"
            )
            lines.append(f"{name}, by {LOOPS[loop]}: {gains}; it {ends}.")
    objective = record["settings"]["objective"]
    for name, level in record["held"].items():
        said = "did not hold the first step" if level is None else f"held the objective up to {level:g}"
        lines.append(f"{name} {said} ({objective['share']:.0%} of requests).")
    return lines


def generator_lines(record: dict[str, Any]) -> list[str]:
    """What the load generator can do, and how much of that the run took."""
    generator = record["generator"]
    seen = generator["busiest_second"]
    took = f"The busiest second of this run had {seen['requests_per_s']:.0f} requests and {seen['chunks_per_s']:.0f} chunks"
    if not generator["measured"]:
        return [f"{took}. The load generator's ceiling was not measured here: the streamer lies in the repository."]
    found = generator["measured"]
    return [
        f"The load generator's own ceiling on this machine, against a server that replays bytes, with {USERS} users: "
        f"{found['requests_per_s']:,.0f} requests/s in one piece, {found['chunks_per_s']:,.0f} chunks/s that come one at a time.",
        f"{took}: {generator['share']:.0%} of it.",
    ]


def warning(record: dict[str, Any]) -> str:
    """Why the run is not to be published; empty if it may be."""
    if not record.get("complete", True):
        return "Not publishable: it was interrupted, and holds the turns that had ended."
    generator = record["generator"]
    if generator["publishable"]:
        return ""
    if generator["share"] is None:
        return "Not publishable: the load generator's ceiling was not measured."
    return f"Not publishable: the load took {generator['share']:.0%} of the generator's ceiling, more than {PUBLISHABLE:.0%}."


def caveats(record: dict[str, Any]) -> list[str]:
    """What the figures lack: usage, records, answers."""
    lines = []
    for row in record["rows"]:
        where = f"{row['condition']}, {row['target']}"
        if row["errors"]:
            kinds = "; ".join(f"{count} × {kind}" for kind, count in row["error_kinds"].items())
            lines.append(f"{where}: {row['errors']} of {row['requests']} failed ({kinds}).")
        if row["without_usage"]:
            lines.append(f"{where}: {row['without_usage']} answers had no usage; they have no time per token.")
    return lines


def _image(draw: Callable[[BinaryIO], None], text: str) -> str:
    file = io.BytesIO()
    draw(file)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{data}">'


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _section(title: str, *parts: str) -> str:
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in ("condition", "server", *(column[0] for column in COLUMNS)))
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in rows]
    return f"<table><tr>{head}</tr>\n" + "\n".join(lines) + "</table>"


def html(record: dict[str, Any]) -> str:
    """The page for what ``loadtest`` wrote."""
    rows, hardware, objective = record["rows"], record["hardware"], record["settings"]["objective"]
    by_level, drafted = bool(levelled(rows)), any(record["acceptance_over_time"].values())
    gained = any(row.get("gain") for row in levelled(rows))
    body = [
        "<h1>Load test</h1>",
        _paragraph(
            f"{record['date']}, {hardware['cpu']}, {hardware['cores']} cores; load generator on the same machine as this report. "
            f"Servers: {', '.join(record['targets'])}, asked the same in turns. Seed {record['settings']['seed']}.", "note",
        ),
        _paragraph(said, "warning") if (said := warning(record)) else "",
        *(_paragraph(line, "lead") for line in verdict(record)),
        _section(
            "Where the draft stops paying", _image(lambda file: draw_gain(rows, file), "gain by level"),
            _paragraph("Output tokens per second over plain's in a closed loop; plain's median end-to-end time over the draft's in "
                       "an open one. Lines span the turns.", "note"),
        ) if gained else "",
        _section("Throughput", _image(lambda file: draw_throughput(rows, file), "tokens per second by level")) if by_level else "",
        _section(
            "Latency", _image(lambda file: draw_latency(rows, file), "percentiles by level"),
            _paragraph("From when a request was due, so that waiting counts in an open loop. Time per output token is from the "
                       "server's usage, not from gaps between chunks.", "note"),
        ) if by_level else "",
        _section(
            "Goodput", _image(lambda file: draw_goodput(rows, file), "goodput by level") if by_level else "",
            _paragraph(f"Share of requests with the first token within {objective['ttft_s'] * 1e3:g} ms and at most "
                       f"{objective['tpot_s'] * 1e3:g} ms per output token; failed requests are bad.", "note"),
        ),
        _section("Acceptance", _image(lambda file: draw_acceptance(record["acceptance_over_time"], file), "acceptance over time"))
        if drafted else "",
        _section("The load generator", *(_paragraph(line) for line in generator_lines(record))),
        _section("What is missing", *(_paragraph(line) for line in lines)) if (lines := caveats(record)) else "",
        _section("All figures", _table(rows)),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Load test</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )
