"""The section of RESULTS.md on the three systems, from three_systems.json."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.three_grid import BASELINES, FOREIGN, METHODS, NONE, Rows

SAME_CUT = 0.03
"""How far apart two models' shares of removed parameters may be for "the same cut"."""


@dataclass(frozen=True)
class Figure:
    """One metric of one method over all seeds.

    Attributes:
        value: mean over seeds.
        low, high: the interval, of several seeds the mean of theirs: they are scored on the same items, so more seeds make it no
            narrower.
        by_seed: each seed's value.
    """

    value: float
    low: float | None
    high: float | None
    by_seed: tuple[float, ...] = ()

    @property
    def seeds(self) -> int:
        """How many."""
        return max(1, len(self.by_seed))


Key = tuple[str, float, str]
"""Method, sparsity, recovery."""


def figures(rows: Rows, table: str) -> dict[Key, dict[str, Figure]]:
    """A table's figures by method, in the order of ``METHODS``, then by sparsity and recovery."""
    grouped: dict[Key, dict[str, Rows]] = {}
    for row in rows:
        if row["table"] == table:
            key = (row["method"], row["sparsity"], row["recovery"])
            grouped.setdefault(key, {}).setdefault(row["metric"], []).append(row)
    order = sorted(grouped, key=lambda key: (key[1], METHODS.index(key[0]), key[2] != NONE, key[2]))
    return {key: {metric: _over_seeds(found) for metric, found in grouped[key].items()} for key in order}


def _over_seeds(rows: Rows) -> Figure:
    values = tuple(row["value"] for row in rows)
    bounds = [(row["low"], row["high"]) for row in rows if row["low"] is not None and row["high"] is not None]
    low, high = map(statistics.mean, zip(*bounds, strict=True)) if len(bounds) == len(rows) else (None, None)
    return Figure(statistics.mean(values), low, high, values)


def cell(figure: Figure | None, form: str = "{:.3f}") -> str:
    """A figure with its interval; a dash where there is none."""
    if figure is None:
        return "–"
    value = form.format(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{form.format(figure.low)}, {form.format(figure.high)}]"


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    low, high = (None if part is None else 100 * part for part in (figure.low, figure.high))
    return cell(Figure(100 * figure.value, low, high), "{:.1f}")


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*marks, *("| " + " | ".join(row) + " |" for row in rows)])


def _named(key: Key) -> list[str]:
    method, sparsity, recovery = key
    return [method, f"{100 * sparsity:.0f} %", recovery]


NAMES = ("method", "removed", "recovery")


def quality(rows: Rows, table: str) -> str:
    """Table depth, width or structured: what is kept of the target, and the tasks themselves."""
    found = figures(rows, table)
    tasks = sorted({name for own in found.values() for name in own if ":" in name})
    heads = [*NAMES, "seeds", "parameters %", "retention %", "by seed", "above chance %", "bits/byte ratio", *tasks]
    return _lines(heads, [
        [*_named(key), str(max(figure.seeds for figure in own.values())), _percent(_negative(own.get("parameters_removed"))),
         _percent(own.get("retention")), _by_each_seed(own.get("retention")),
         _percent(own.get("retention_above_chance")), cell(own.get("bits_ratio")),
         *(cell(own.get(task)) for task in tasks)]
        for key, own in found.items()
    ])  # fmt: skip


def _by_each_seed(figure: Figure | None) -> str:
    """The smallest and the largest seed's percentage; a dash for a single seed."""
    if figure is None or figure.seeds < 2:
        return "–"
    return f"{100 * min(figure.by_seed):.1f}–{100 * max(figure.by_seed):.1f}"


def _negative(figure: Figure | None) -> Figure | None:
    return None if figure is None else Figure(-figure.value, None, None)


def two_sets_of_answers(cells: dict[str, dict[str, Any]]) -> str:
    """Says so where drafts were judged on answers that different devices have drawn."""
    devices: dict[str, list[str]] = {}
    for slug, made in cells.items():
        if slug.startswith("acceptance-"):
            devices.setdefault(" and ".join(made.get("gpus", ())) or "processors", []).append(
                slug.removeprefix("acceptance-")
            )
    if len(devices) < 2:
        return ""
    most, *others = sorted(devices.items(), key=lambda found: -len(found[1]))
    apart = "; ".join(f"on {name}: {', '.join(slugs)}" for name, slugs in others)
    return (
        f"The answers that they were judged on were drawn on {most[0]}, but for these, whose place in the order is therefore not "
        f"exact: {apart}."
    )


def acceptance(rows: Rows) -> str:
    """Models as drafts of the target, the most accepted first."""
    found = figures(rows, "acceptance")
    order = sorted(found, key=lambda key: -found[key]["acceptance_length"].value)
    heads = [*NAMES, "acceptance length", "overlap", "agreement"]
    lines = [
        [
            *_named(key),
            *(cell(found[key].get(name)) for name in ("acceptance_length", "overlap", "agreement")),
        ]
        for key in order
    ]
    return _lines(heads, lines)


def same_arms(rows: Rows) -> str:
    """Says so where NutePrune's two arms gave the very same figures: no snapshot ever taught there."""
    found: dict[str, dict[tuple[Any, ...], float]] = {}
    for row in rows:
        if row["table"] == "structured":
            place = (row["sparsity"], row["recovery"], row["seed"], row["metric"])
            found.setdefault(row["method"], {})[place] = row["value"]
    intact, numerous = (found.get(f"nuteprune:{teachers}", {}) for teachers in ("intact", "numerous"))
    both = intact.keys() & numerous.keys()
    same = {place[0] for place in both} - {place[0] for place in both if intact[place] != numerous[place]}
    if not same:
        return ""
    shares = ", ".join(f"{100 * share:.0f} %" for share in sorted(same))
    return (
        f"**At {shares} both arms gave the same figures**: the search took too few snapshots for one to teach, so these rows say "
        "nothing of numerous teachers."
    )


def by_export(rows: Rows) -> str:
    """Models served beside the target."""
    lines, kept_in = [], figures(rows, "exports")
    for key, own in figures(rows, "speed").items():
        own = {**kept_in.get(key, {}), **own}
        for export in sorted({name.partition(":")[2] for name in own}):
            metrics = ("speedup", "tokens_per_s", "weights_mib", "bits_ratio")
            parameters = _percent(_negative(own.get(f"parameters_removed:{export}")))
            kept = (_percent(own.get(f"{name}:{export}")) for name in ("retention", "retention_above_chance"))
            speedup, tokens, weights, bits = (own.get(f"{m}:{export}") for m in metrics)
            target = None if speedup is None or tokens is None else Figure(tokens.value / speedup.value, None, None)
            shown = (cell(figure, "{:.2f}") for figure in (speedup, tokens, target, weights))
            lines.append([*_named(key)[:2], export, parameters, *shown, *kept, cell(bits)])
    heads = (
        "method", "removed", "export", "parameters %", "speed-up", "tokens/s", "target's", "weights MiB", "retention %",
        "above chance %", "bits/byte ratio",
    )  # fmt: skip
    return _lines(heads, lines)


def costs(rows: Rows) -> str:
    """Wall times and ratios."""
    metrics = (
        "prune_s",
        "answers_s",
        "recover_s",
        "scoring_over_forward",
        "peak_memory_over_finetuning",
        "peak_memory_with_two_models",
    )
    found = figures(rows, "cost")
    heads = [
        *NAMES,
        "pruning s",
        "answers s",
        "recovery s",
        "scoring / forward",
        "peak / fine-tuning step",
        "peak with a second model",
    ]
    return _lines(heads, [[*_named(key), *(cell(own.get(m), "{:.2f}") for m in metrics)] for key, own in found.items()])


def _retention(rows: Rows) -> dict[tuple[str, Key], dict[int, float]]:
    """Retention by table and method, and by seed."""
    found: dict[tuple[str, Key], dict[int, float]] = {}
    for row in rows:
        if row["metric"] == "retention":
            key = (row["table"], (row["method"], row["sparsity"], row["recovery"]))
            found.setdefault(key, {})[row["seed"]] = row["value"]
    return found


def _share(own: dict[int, float], other: dict[int, float]) -> float:
    """One model's mean over another's, of the seeds that both have; infinite where there are none."""
    both = own.keys() & other.keys()
    return statistics.mean(own[s] for s in both) / statistics.mean(other[s] for s in both) if both else float("inf")


def same_cut(rows: Rows) -> str:
    """All models by how much they are smaller, each beside the best of about the same size, on the seeds that both have."""
    models = [
        (table, key, own)
        for table in ("depth", "width", "structured")
        for key, own in figures(rows, table).items()
        if {"retention", "parameters_removed"} <= own.keys()
    ]
    kept = _retention(rows)

    def removed(model: tuple[str, Key, dict[str, Figure]]) -> float:
        return model[2]["parameters_removed"].value

    lines = []
    for model in sorted(models, key=lambda model: (removed(model), -model[2]["retention"].value)):
        table, key, own = model
        near = [other for other in models if abs(removed(other) - removed(model)) <= SAME_CUT]
        shares = [_share(kept[table, key], kept[other[0], other[1]]) for other in near]
        best = near[shares.index(min(shares))] if min(shares) < 1 else model
        known = "itself" if best is model else f"{best[1][0]} ({best[1][2]})"
        lines.append([
            _percent(_negative(own["parameters_removed"])), table, key[0], key[2], str(own["retention"].seeds),
            _percent(own["retention"]), f"{100 * min(1.0, *shares):.1f}", known,
        ])  # fmt: skip
    heads = ("parameters %", "table", "method", "recovery", "seeds", "retention %", "of the best's %", "best")
    return _lines(heads, lines)


Side = tuple[str, str]
"""Method and recovery."""

SIDES: tuple[tuple[str, Side, Side], ...] = (
    ("depth", ("depth:selfdata", "full"), ("depth:sft", "full")),
    ("depth", ("depth:selfdata", FOREIGN), ("depth:sft", FOREIGN)),
    ("depth", ("depth:merged", "full"), ("depth:selfdata", "full")),
    *(("width", ("cfsp:paper", NONE), (baseline, NONE)) for baseline in BASELINES),
    ("width", ("cfsp:paper", "important_first"), ("cfsp:paper", "uniform")),
    ("width", ("cfsp:paper", "pruned_first"), ("cfsp:paper", "uniform")),
    ("structured", ("nuteprune:numerous", "lora"), ("nuteprune:intact", "lora")),
)
"""What the systems' claims are about: by table, the one that should be ahead and the one beside it."""


def _differences(rows: Rows, metric: str, table: str, sparsity: float, sides: tuple[Side, Side]) -> list[float]:
    """One side's figure less the other's, for each seed that both have; both are scored on the same items."""
    own, other = (
        {row["seed"]: row["value"] for row in rows
         if (row["metric"], row["table"], row["method"], row["sparsity"], row["recovery"])
         == (metric, table, side[0], sparsity, side[1])}
        for side in sides
    )  # fmt: skip
    return [own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())]


def _with_range(values: Sequence[float], form: str) -> str:
    if not values:
        return "–"
    mean = form.format(statistics.mean(values))
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else mean


def side_by_side(rows: Rows) -> str:
    """What is claimed to be ahead, less what it is claimed to be ahead of, seed by seed."""
    lines = []
    for table, one, other in SIDES:
        for sparsity in sorted({row["sparsity"] for row in rows if (row["table"], row["method"]) == (table, one[0])}):
            kept = _differences(rows, "retention", table, sparsity, (one, other))
            bits = _differences(rows, "bits_ratio", table, sparsity, (one, other))
            lengths = _differences(rows, "acceptance_length", "acceptance", sparsity, (one, other))
            if kept:
                names = [
                    method if how in (NONE, "full", "lora") else f"{method} ({how})" for method, how in (one, other)
                ]
                lines.append([
                    " − ".join(names), f"{100 * sparsity:.0f} %", str(len(kept)),
                    _with_range([100 * value for value in kept], "{:+.1f}"), _with_range(bits, "{:+.4f}"),
                    _with_range(lengths, "{:+.2f}"),
                ])  # fmt: skip
    return _lines(
        ("difference", "removed", "seeds", "retention, points", "bits/byte ratio", "acceptance length"), lines
    )


def _introduction(record: dict[str, Any], file: str) -> list[str]:
    """The heading, where the figures come from, and how the tables are read."""
    settings = record["settings"]
    parts = [
        "## Three systems",
        f"Command: `make results-three-systems{' QUICK=1' if settings['quick'] else ''}` (file: `{file}`); "
        f"up to {len(settings['seeds'])} seed(s), lm-evaluation-harness "
        f"{record['versions'].get('lm-eval', 'unknown')}. Tables made on: {made_on(record['cells'])}.",
        "Values are means over the seeds that were measured (*seeds* says how many, *by seed* the smallest and the largest); in "
        "brackets the 95 % interval over items, of several seeds the mean of theirs, because all are scored on the same items "
        "(each task's are drawn by themselves, though two tasks ask of the same functions: somewhat too narrow). "
        "As drafts the brackets are the range over kinds of answers and "
        "temperatures, served (answers of one length) the range over turns, and scoring's costs are medians with the range over "
        "repeats. *Retention* is "
        "the mean score of four tasks over the target's (*above chance*: chance taken off both); *bits/byte ratio* is the "
        "perplexity's, 1 is the target's, more is "
        "worse. *removed* counts layers, FFN channels or the layers' "
        "linear weights; *parameters* counts all.",
        "*depth:selfdata* learns the target's own answers to the training prompts, *depth:sft* the corpus on as many positions, "
        "*depth:merged* is two recoveries on its answers to code and to chat; *full:foreign* is the same with "
        "prompts and reference answers made from networkx, which the target never saw. (The paper has references "
        "rewritten: DECISIONS.) What falls short of the papers' claims is looked into in EXPERIMENTS.",
    ]
    if settings["quick"]:
        parts.append(
            "**Quick form: one seed and small budgets. It shows that the way is whole, not which system is ahead.**"
        )
    return parts


def three_systems(record: dict[str, Any], file: str = "benchmarks/three_systems.json") -> str:
    """The whole section.

    Args:
        file: where the record is.
    """
    rows = record["rows"]
    present = {row["table"] for row in rows}
    parts = _introduction(record, file)
    sections: list[tuple[str, str, Callable[[], str]]] = [
        ("depth", "Fewer layers", lambda: quality(rows, "depth")),
        ("width", "Narrower FFNs", lambda: quality(rows, "width")),
        ("structured", "Masks over heads and neurons", lambda: quality(rows, "structured")),
        ("acceptance", "As drafts of their target", lambda: acceptance(rows)),
        ("speed", "Served in the target's place", lambda: by_export(rows)),
        ("cost", "What they cost", lambda: costs(rows)),
    ]
    for table, title, render in sections:
        if table in present:
            parts += [f"### {title}", render()]
        if table == "structured" and (alike := same_arms(rows)):
            parts.append(alike)
        if table == "acceptance" and (apart := two_sets_of_answers(record["cells"])):
            parts.append(apart)
    if present & {"depth", "width", "structured"}:
        beside = "Each model beside the best of about its size, by retention, on the seeds that both have."
        parts += ["### At the same cut", beside, same_cut(rows)]
    if (differences := side_by_side(rows)).count("\n") > 1:
        within = (
            "Seed by seed, in brackets the smallest and the largest: both sides are scored on the same items, so that much of the "
            "intervals above is common to them. Fewer bits per byte are better. As drafts they were judged for one seed."
        )
        parts += ["### What is claimed to be ahead, less what it is beside", within, differences]
    if record["failed"]:
        parts.append("Not measured: " + "; ".join(f"{name}: {why}" for name, why in record["failed"].items()) + ".")
    if missing := record.get("missing"):
        parts.append(
            f"{len(missing)} of {len(missing) + len(record['cells'])} cells have not been measured yet: {_by_seed(missing)}."
        )
    return "\n\n".join(parts)


def made_on(cells: dict[str, dict[str, Any]]) -> str:
    """Which tables were made on which machine, with which torch and until when."""
    places: dict[tuple[str, str], tuple[dict[str, None], str]] = {}
    for slug, made in cells.items():
        bfloat16 = {True: " (multiplies bfloat16)", False: " (without products of bfloat16)"}.get(
            made.get("bfloat16"), ""
        )
        machine = " and ".join((*made.get("gpus", ()), made["cpu"] + bfloat16))
        tables, date = places.get((machine, made.get("torch") or "unknown"), ({}, ""))
        tables[slug.partition("-")[0]] = None
        places[machine, made.get("torch") or "unknown"] = (tables, max(date, made["date"]))
    return "; ".join(
        f"{machine} with torch {torch} ({', '.join(tables)}; {date})"
        for (machine, torch), (tables, date) in places.items()
    )


def _by_seed(slugs: Sequence[str]) -> str:
    """Cells in short: all of them by table and seed."""
    counts = Counter((slug.partition("-")[0], slug.rpartition("seed")[2]) for slug in slugs)
    return ", ".join(f"{number} of table {table}, seed {seed}" for (table, seed), number in counts.items())
