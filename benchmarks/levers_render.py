"""The sections of RESULTS.md on the levers, from draft.json."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

from benchmarks.comparison_render import off, setup, table
from benchmarks.draft import step_in_plain_steps

LEVER_HEADS = (
    "lever", "layers", "seconds", "positions", "overlap", "agree", "code T=0", "code T=1", "chat T=0", "chat T=1",
    "greedy drafting, code T=1", "chat T=1", "predicted, code T=0", "chat T=0", "served, code T=0", "chat T=0",
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
    speeds = [by[kind, 0.0][name] for name in ("predicted_speedup", "speedup") for kind in ("code", "chat")]
    return [
        first["lever"] + (", all at once" if first["method"] == "draft_parallel" else ""),
        ", ".join(map(str, first["kept_layers"])), *spent, *means, *lengths, *greedy,
        *("–" if value is None else f"{value:.2f}" for value in speeds),
    ]  # fmt: skip


def _machine(record: dict[str, Any]) -> str:
    hardware = record["hardware"]
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, {record['date'][:10]}"


SHAPE_HEADS = ("lever", "layers", "step", "code: length", "code: speed-up", "chat: length", "chat: speed-up")


def shapes(record: dict[str, Any]) -> str:
    """Levers whose drafts have different shapes, as they were served at one request: what their steps cost and what they gain."""
    layers = {row["lever"]: row["kept_layers"] for row in record["rows"] if "num_positions" in row}
    rows = [row for row in record["shapes"] if row["lever"] is not None]
    plain = {(row["kind"], row["temperature"]): row for row in record["shapes"] if row["method"] == "plain"}
    lines = ["| " + " | ".join(SHAPE_HEADS) + " |", "|" + "---|" * len(SHAPE_HEADS)]
    for lever in sorted(dict.fromkeys(row["lever"] for row in rows), key=lambda lever: len(layers[lever])):
        own = {(row["kind"], row["temperature"]): row for row in rows if row["lever"] == lever}
        steps = [step_in_plain_steps(row, plain[place]) for place, row in own.items()]
        cells = [lever, str(len(layers[lever])), f"{geometric_mean(steps):.2f} ({min(steps):.2f}–{max(steps):.2f})"]
        for kind in ("code", "chat"):
            for name in ("mean_acceptance_length", "speedup"):
                cells.append(" / ".join(f"{own[kind, t][name]:.2f}" for t in (0.0, 1.0)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
            f"{judged[0]['num_speculative_tokens']} draft tokens (sampled drafting; for T = 1 also greedy drafting). *served* is "
            "the speed-up at one request of the levers below, one of each shape; *predicted* is the one that the judged length "
            "gives with what a step, first tokens and answers cost with the one of the lever's shape that was served.",
            f"Trained on {_machine(record['sweep'])}.",
            "\n".join(lines),
            "### One lever of each shape, served",
            "Held-out prompts, one request at a time, methods in turns; *step* is a step in plain steps over kinds and "
            "temperatures, in brackets their range; lengths and speed-ups at T = 0 and 1.",
            shapes(record),
            "### Served beside other methods",
            setup(record),
            "*chosen* is the reference build's pair as `choose` wrote it, *draft_greedy* its draft proposing its likeliest tokens "
            "at T = 1 too, *sibling* a model of its draft's size trained from scratch on the same answers, and *draft_parallel* "
            "its layers trained to propose all tokens in one pass (by vLLM's own method), both for as many seconds; *draft* (the "
            "recipe) had the sweep's budget.",
            table(served),
            off(served),
            "### Longer answers",
            f"Answers of up to {record['long']['settings']['max_tokens']} tokens, greedy, one request at a time, methods in turns: "
            "some of the target's outputs begin to loop, which makes drafting easier for methods that look back. *w/o loops* is "
            "the speed-up without them.",
            table(record["long"]["rows"]),
        ]
    )
