"""The sections of RESULTS.md on the levers, from draft.json."""

from __future__ import annotations

from statistics import geometric_mean
from typing import Any

from benchmarks.comparison_render import off, setup, table
from benchmarks.draft import GREEDY_LEVER, step_in_plain_steps
from drafts.comparing import GREEDILY

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
    layers = {row["lever"]: row["kept_layers"] for row in record["rows"] if row.get("num_positions") is not None}
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


def _by_lever(row: dict[str, Any]) -> dict[str, Any]:
    """A served row under the name that tells it from the other draft's."""
    return {**row, "method": GREEDILY} if row["lever"] == GREEDY_LEVER else row


def step_table(costs: list[dict[str, Any]]) -> str:
    """What ``measure`` found of the pair, in plain steps at the same number of requests."""
    lines = ["| requests | v, quartiles | c, quartiles | step with 1, 2, … tokens |", "|---|---|---|---|"]
    lines += [
        f"| {c['concurrency']} | {c['verify']:.2f} ({c['verify_low']:.2f}–{c['verify_high']:.2f}) | "
        f"{c['draft']:.3f} ({c['draft_low']:.3f}–{c['draft_high']:.3f}) | {' '.join(f'{s:.2f}' for s in c['steps'])} |"
        for c in costs
    ]
    tokens = costs[0]["num_speculative_tokens"]
    said = (
        f"In plain steps at the same number of requests, on the validation prompts (`understudy measure`): *v*, a step that checks "
        f"{tokens} draft tokens and drafts for free, and *c*, a draft token."
    )
    return f"{said}\n\n" + "\n".join(lines)


def limit_table(limits: list[dict[str, Any]]) -> str:
    """What a perfect draft would gain, and what acceptance 2.5x would take."""
    lines = [
        "| kind | tokens | step | first token, plain | with a draft | later tokens | a perfect draft gains | length for 2.5x |",
        "|" + "---|" * 8,
    ]
    for row in limits:
        needed = row["length_for_2_5"]
        lines.append(
            f"| {row['kind']} | {row['num_speculative_tokens']} | {row['step']:.2f} | {1000 * row['first_token_s']:.0f} ms | "
            f"{1000 * row['drafted_first_token_s']:.0f} ms | {row['later_tokens']:.1f} of {1000 * row['plain_s']:.1f} ms | "
            f"{row['perfect_speedup']:.2f}x | {'out of reach' if needed is None else f'{needed:.2f}'} |"
        )
    said = (
        "One request, from the same measurement: steps are in plain ones; a mean acceptance length can be one more than the "
        "number of draft tokens at most."
    )
    return f"{said}\n\n" + "\n".join(lines)


def built_in(seconds: dict[str, float | None]) -> str:
    """How long the reference build took."""
    known = {stage: s for stage, s in seconds.items() if s is not None}
    parts = ", ".join(f"{stage} {s:.0f} s" for stage, s in known.items())
    return f"`understudy build recipes/reference.yaml` took {sum(known.values()) / 60:.1f} minutes: {parts}."


def _costs(record: dict[str, Any]) -> list[str]:
    """What stands of steps, the limit and the build; files of before 2026-11-29 have none of it."""
    if "costs" not in record:
        return [
            "*predicted* of a lever is from the served step of one of its shape here: the file is of before 2026-11-29."
        ]
    return [
        "### What a step costs, and the limit", step_table(record["costs"]), limit_table(record["limits"]),
        built_in(record["build_seconds"]),
    ]  # fmt: skip


def levers(record: dict[str, Any]) -> str:
    """The section on the levers: what was trained alike, and what was served beside the chosen draft."""
    judged = [row for row in record["rows"] if row.get("num_positions") is not None]
    keys = dict.fromkeys((row["lever"], row["method"]) for row in judged)
    by_lever = [[row for row in judged if (row["lever"], row["method"]) == key] for key in keys]
    order = sorted(by_lever, key=lambda rows: -sum(row["mean_acceptance_length"] for row in rows))
    lines = ["| " + " | ".join(LEVER_HEADS) + " |", "|" + "---|" * len(LEVER_HEADS)]
    lines += ["| " + " | ".join(lever_cells(rows)) + " |" for rows in order]
    served = [row for row in record["rows"] if row.get("num_positions") is None]
    return "\n\n".join(
        [
            "## Levers",
            "Command: `make results-draft` (file: `benchmarks/draft.json`). Every lever of `recipes/levers.yaml` changes the "
            "reference recipe in one place; *positions* were trained on within the sweep's budget (mask positions count: with "
            "four tokens in one pass only two fifths of them are text). Judged without an engine on the target's own "
            "answers to the validation prompts: overlap and agreement, and mean acceptance lengths with "
            f"{judged[0]['num_speculative_tokens']} draft tokens (sampled drafting; for T = 1 also greedy drafting). "
            "*predicted* is the speed-up at one request that the judged length gives with the step costs, first tokens and "
            "answers that `understudy measure` found of the pair on the validation prompts, what the draft "
            "does in them rated by its weights; *served* is that of the levers below, one of each shape, on the held-out prompts.",
            f"Trained on {_machine(record['sweep'])}.",
            "\n".join(lines),
            "### One lever of each shape, served",
            "Held-out prompts, one request at a time, methods in turns; *step* is a step in plain steps over kinds and "
            "temperatures, in brackets their range; lengths and speed-ups at T = 0 and 1.",
            shapes(record),
            "### Served beside other methods",
            setup(record),
            "*chosen* is the reference build's pair as `choose` wrote it; *under way* counts requests on average over a "
            "turn, whose end runs out; *draft_greedy* is the pair's draft proposing its likeliest tokens "
            "at T = 1 too, *sibling* a model of its draft's size trained from scratch on the same answers, and *draft_parallel* "
            "its layers trained to propose all tokens in one pass (by vLLM's own method), both for as many seconds; *draft* (the "
            "recipe) had the sweep's budget.",
            table([_by_lever(row) for row in served]),
            off([_by_lever(row) for row in served]),
            *_costs(record),
            "### Longer answers",
            f"Answers of up to {record['long']['settings']['max_tokens']} tokens, greedy, one request at a time, methods in turns: "
            "some of the target's outputs begin to loop, which makes drafting easier for methods that look back. *w/o loops* is "
            "the speed-up without them.",
            table(record["long"]["rows"]),
        ]
    )
