"""Writes RESULTS.md from the measured files: ``python -m benchmarks.render``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.comparison_render import off, setup, table
from benchmarks.deploy_render import deploy
from benchmarks.floor_render import floor
from benchmarks.levers_render import levers
from benchmarks.loadtest_render import loadtest
from benchmarks.promises import table as promises
from benchmarks.three_render import three_systems
from drafts.ties import describe_differences
from stages.folders import write_text

FOLDER = Path(__file__).parent


def of_sample(settings: dict[str, Any]) -> str:
    """What the command is told when it takes a sample of the held-out prompts instead of all."""
    return f" PER_KIND={settings['prompts_per_kind']}" if settings["prompts_per_kind"] else ""


def reference(record: dict[str, Any]) -> str:
    """The section on the reference target."""
    settings = record["settings"]
    return "\n\n".join(
        [
            "## Reference target and its draft",
            f"Command: `make results{of_sample(settings)}` (file: `benchmarks/reference.json`).",
            setup(record),
            "Speed-up is output tokens per second over plain's, methods taking turns every "
            f"{settings['block_size']} prompts; in brackets the range over turns. "
            "*predicted* is what `choose` expected from measured steps and acceptance. *w/o loops* leaves out prompts whose "
            "output loops with either method. *length* is the mean acceptance length of steps that proposed something, as vLLM "
            "counts: an n-gram lookup without a match is a plain step and not in it.",
            table(record["rows"]),
            off(record["rows"]),
            describe_differences(record),
        ]
    )


SHAPES = ("whole", "stream")

OVERHEAD_HEADS = (
    "proxy", "shape", "connections", "CPU ms/request", "CPU ms/1,000 chunks", "added ms to first byte, p50", "p99",
)  # fmt: skip


def spread(row: dict[str, Any], key: str) -> str:
    """A time in milliseconds with its range over repeats."""
    if row[key] is None:
        return "–"
    low, high = row[f"{key}_range"]
    return f"{1e3 * row[key]:.2f} [{1e3 * low:.2f}, {1e3 * high:.2f}]"


def overhead_cells(row: dict[str, Any]) -> list[str]:
    """One row of the overhead's table."""
    keys = ("cpu_s_per_request", "cpu_s_per_1000_chunks", "added_ttfb_p50_s", "added_ttfb_p99_s")
    failed = f" ({row['requests'] - row['answered']} failed)" if row["answered"] < row["requests"] else ""
    cells = [spread(row, key) for key in keys]
    return [row["proxy"] + failed, row["shape"], str(row["connections"]), *cells]


def proxy_line(said: dict[str, Any]) -> str:
    """What is to be said of one proxy: version, memory, or why it is not there."""
    if said["missing"] is not None:
        return f"- {said['proxy']}: no figures, {said['missing']}"
    before, after = (f"{said[key] / 2**20:,.0f}" for key in ("rss_before_bytes", "rss_after_bytes"))
    keys = "checks keys" if said["authenticates"] else "without keys"
    return f"- {said['proxy']} {said['version']}: {keys}; {before} MiB before, {after} MiB after"


OURS = "understudy"
CPU = {"whole": "cpu_s_per_request", "stream": "cpu_s_per_1000_chunks"}
"""What a proxy's work is counted by, for each shape."""


def against(rows: list[dict[str, Any]], other: str) -> list[float]:
    """Our CPU seconds over another proxy's, in every cell that both have."""
    cells = {(row["proxy"], row["shape"], row["connections"]): row[CPU[row["shape"]]] for row in rows}
    places = [(shape, connections) for name, shape, connections in cells if name == other]
    pairs = [(cells.get((OURS, *place)), cells[other, *place]) for place in places]
    return [mine / theirs for mine, theirs in pairs if mine and theirs]


def in_short(rows: list[dict[str, Any]]) -> str:
    """Our figures over the others', and what we add to a first byte."""
    said = []
    if smg := against(rows, "smg"):
        said.append(f"{min(smg):.1f} to {max(smg):.1f} times the CPU of smg (Rust)")
    if litellm := against(rows, "litellm"):
        said.append(f"1/{1 / min(litellm):.1f} to 1/{1 / max(litellm):.1f} of LiteLLM's")
    added = [row["added_ttfb_p50_s"] for row in rows if row["proxy"] == OURS and row["added_ttfb_p50_s"] is not None]
    if added:
        said.append(f"{1e3 * min(added):.1f} to {1e3 * max(added):.1f} ms added to the first byte (p50)")
    return f"Understudy, keys and metrics on, access log off: {', '.join(said)}." if said else ""


def gateway(record: dict[str, Any]) -> str:
    """The sections on the gateway: beside other proxies, and what it promises."""
    parts = [overhead(record)] if record.get("overhead") else []
    parts += [promises.section(record["promises"])] if record.get("promises") else []
    return "\n\n".join(parts)


def overhead(record: dict[str, Any]) -> str:
    """The section on the gateway beside other proxies."""
    hardware, settings, ceiling = record["hardware"], record["settings"], record["ceiling"]
    rows = sorted(record["overhead"], key=lambda row: (SHAPES.index(row["shape"]), row["connections"]))
    lines = ["| " + " | ".join(OVERHEAD_HEADS) + " |", "|" + "---|" * len(OVERHEAD_HEADS)]
    lines += ["| " + " | ".join(overhead_cells(row)) + " |" for row in rows if row["proxy"] != "direct"]
    return "\n\n".join(
        [
            "## The gateway beside other proxies",
            "Command: `make bench-gateway` (file: `benchmarks/gateway.json`).",
            f"Hardware: {hardware['cpu']}, {hardware['cores']} cores; streamer and client on one, the proxy on another. "
            f"Python {hardware['python']}, repeats: {settings['repeats']}, {record['date']}. Medians of the repeats, in "
            "brackets their range; *added* is against the direct way in the same round. Requests are sent evenly, "
            f"{settings['requests_per_s']} a second for answers in one piece, so that nobody queues. Streams have "
            f"{settings['chunks']} chunks, about {settings['chunks_per_s']} chunks a second in all, beginning evenly. CPU is that "
            "of the proxy's process tree; for streams per 1,000 chunks it includes the requests themselves.",
            f"Upstream is our own streamer, which replays bytes. Its ceiling with our client, without a proxy: "
            f"{ceiling['requests_per_s']:,.0f} requests/s in one piece, {ceiling['chunks_per_s']:,.0f} chunks/s.",
            *([short] if (short := in_short(record["overhead"])) else []),
            "\n".join(lines),
            "\n".join(proxy_line(said) for said in record["proxies"]),
        ]
    )


SECTIONS = {
    "reference.json": reference,
    "draft.json": levers,
    "floor.json": floor,
    "three_systems.json": three_systems,
    "gateway.json": gateway,
    "loadtest.json": loadtest,
    "deploy.json": deploy,
}
"""What makes the section of each measured file."""


def main() -> None:
    """Renders every section whose file is there."""
    sections = [
        section(json.loads((FOLDER / name).read_text(encoding="utf-8")))
        for name, section in SECTIONS.items()
        if (FOLDER / name).is_file()
    ]
    write_text(
        FOLDER / "RESULTS.md",
        "\n\n".join(["# Results", "Every number here is made by the command beside it.", *sections]) + "\n",
    )
    print(f"{FOLDER.name}/RESULTS.md")


if __name__ == "__main__":
    main()
