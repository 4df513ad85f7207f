"""Pictures: the choice of K, and the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from drafts.choice import Choice
from drafts.measurements import Measurements
from drafts.table import load
from stages.folders import storage_errors

COLOURS = {
    "plain": "#8a8f98", "ngram": "#d98e32", "suffix": "#b5532d", "sibling": "#6a9a4a", "draft": "#2f6fb0",
    "draft_parallel": "#7a5aa6", "draft_greedy": "#4fa3c7", "chosen": "#12355b",
}  # fmt: skip
OTHER = "#2a9d8f"
"""Colour of drafts with names of their own."""
SUFFIX = "suffix decoding"
WAYS = {"draft": "one by one", "parallel": "in one pass"}


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    return figure, list(axes)


def _save(figure: Any, where: Path | BinaryIO) -> None:
    if not isinstance(where, Path):
        figure.savefig(where, format="png")
        return
    with storage_errors(where):
        figure.savefig(where)


def draw_training(losses: Sequence[Sequence[float]], path: Path) -> None:
    """Loss over judged positions of a recovery; ``losses`` are pairs (positions, loss)."""
    figure, (axis,) = _figure(1, 6, 3)
    axis.plot([pair[0] for pair in losses], [pair[1] for pair in losses], color=COLOURS["draft"], linewidth=1)
    axis.set(xlabel="positions trained on", ylabel="loss", title="Recovery", yscale="log")
    _save(figure, path)


def draw_choice(choice: Choice, measurements: Measurements, path: Path) -> None:
    """Speed-up over draft tokens and over batch size (chosen points marked), and acceptance by position.

    The draft's speed-ups are predicted, those of suffix decoding were served.
    """
    figure, (left, middle, right) = _figure(3, 13, 3.6)
    _by_tokens(left, choice, measurements)
    _by_batch_size(middle, choice)
    for axis in (left, middle):
        axis.axhline(1.0, color=COLOURS["plain"], linestyle="--", label="plain")
        axis.legend(fontsize=8)
    way = measurements.ways[0] if choice.way == "suffix" else choice.way
    for item in (found for found in measurements.acceptances if found.way == way):
        steps = sum(item.histogram)
        reached = [sum(item.histogram[j:]) / steps for j in range(1, len(item.histogram))]
        right.plot(range(1, len(item.histogram)), reached, "o-", label=f"{item.kind}, T = {item.temperature:g}")
    title = "Acceptance by position, of the draft"
    right.set(xlabel="draft position", ylabel="share of steps that accept it", ylim=(0, 1), title=title)
    right.legend(fontsize=8)
    _save(figure, path)


def _by_tokens(axis: Any, choice: Choice, measurements: Measurements) -> None:
    """A curve for each way of drafting and number of requests, a diamond for suffix decoding at the most that it proposes."""
    picked = choice.by_concurrency
    at = {(c.way, c.concurrency, c.num_speculative_tokens): c.speedup for c in choice.considered}
    for place, n in enumerate(picked):
        colour = _shade(place, len(picked))
        for way in measurements.ways:
            found = {k: speedup for (w, m, k), speedup in at.items() if (w, m) == (way, n)}
            line, name = ("o-", f"{n} at a time") if way == choice.way else (":", f"{n}, {WAYS[way]}")
            axis.plot(list(found), list(found.values()), line, color=colour, markersize=4, label=name)
        looked_up = {k: speedup for (w, m, k), speedup in at.items() if (w, m) == ("suffix", n)}
        if looked_up:
            axis.plot(list(looked_up), list(looked_up.values()), "D", color=colour, label=f"{n}, {SUFFIX}")
        if picked[n]:
            chosen = at[choice.way, n, picked[n]]
            axis.plot([picked[n]], [chosen], "o", markersize=12, fillstyle="none", color=colour)
    axis.set(xlabel="draft tokens per step", ylabel="speed-up", title="By number of draft tokens")


def _by_batch_size(axis: Any, choice: Choice) -> None:
    """What was chosen over the number of requests, beside the draft's best or suffix decoding, whichever was not."""
    picked = choice.by_concurrency
    at = {(c.way, c.concurrency, c.num_speculative_tokens): c.speedup for c in choice.considered}
    nothing = choice.num_speculative_tokens is None
    gained = [1.0 if nothing else at.get((choice.way, n, k), 1.0) for n, k in picked.items()]
    looked_up = [c for c in choice.considered if c.way == "suffix"]
    own, other = ("suffix", "draft") if choice.way == "suffix" else ("draft", "suffix")
    chosen = f"chosen: {SUFFIX}" if own == "suffix" else "chosen"
    axis.plot(list(picked), gained, "o-", color=COLOURS[own], label=chosen)
    for n, height in zip(picked, gained, strict=True):
        text = f"K = {picked[n]}"
        axis.annotate(text, (n, height), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    if looked_up:
        beside = {
            n: max(s for (w, m, _), s in at.items() if m == n and (w == "suffix") == (other == "suffix"))
            for n in picked
        }
        name = f"{SUFFIX}, as served" if other == "suffix" else "draft's best"
        axis.plot(list(beside), list(beside.values()), "D:", color=COLOURS[other], label=name)
        spans = [(c.concurrency, c.worst, c.speedup) for c in looked_up]
        axis.vlines(
            *zip(*spans, strict=True), color=COLOURS["suffix"], linewidth=1, label="down to where it gains least"
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(picked), [str(n) for n in picked])
    axis.set(xlabel="requests at a time", ylabel="speed-up", title="By batch size, with the chosen K")
    axis.margins(y=0.2)


def _shade(place: int, count: int) -> tuple[float, float, float]:
    """The draft's colour, paler for later places."""
    paleness = 0.65 * place / max(1, count - 1)
    channels = [int(COLOURS["draft"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (channel + (1 - channel) * paleness for channel in channels)
    return red, green, blue


def _bars(axis: Any, rows: Sequence[dict[str, Any]], temperature: float) -> None:
    chosen = [row for row in rows if row["temperature"] == temperature]
    places = list(dict.fromkeys((row["kind"], load(row)) for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    width = 0.8 / len(methods)
    for offset, method in enumerate(methods):
        own = {(row["kind"], load(row)): row for row in chosen if row["method"] == method}
        heights = [own[place]["speedup"] for place in places]
        x = [i + offset * width for i in range(len(places))]
        axis.bar(x, heights, width * 0.92, label=method, color=COLOURS.get(method, OTHER))
        low, high = ([own[place][f"speedup_{end}"] for place in places] for end in ("low", "high"))
        axis.vlines(x, low, high, color="black", linewidth=1)  # a ratio of totals may lie outside the turns' range
        for a, b in zip(x, heights, strict=True) if len(places) * len(methods) <= LABELLED else ():
            axis.text(a, 0.04, f"{b:.2f}", ha="center", va="bottom", fontsize=7, color="white")
    axis.set_xticks([i + width * (len(methods) - 1) / 2 for i in range(len(places))])
    axis.set_xticklabels(
        [f"{kind}\n{loaded if '/' in loaded else f'×{loaded}'}" for kind, loaded in places], fontsize=8
    )
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set(title="greedy" if temperature == 0 else f"sampled, T = {temperature:g}", ylabel="speed-up over plain")
    axis.set_xlim(-width, len(places) - 0.2 + width)


LABELLED = 24
"""Bars of a panel that have room for their figure."""


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path | BinaryIO) -> None:
    """Speed-up over plain decoding by method, kind and concurrency, one panel a temperature; lines span the turns."""
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    bars = len({(row["kind"], load(row), row["method"]) for row in rows})
    figure, axes = _figure(1, min(14.0, max(7.0, 0.16 * bars)), 3.0 * len(temperatures) + 0.4, len(temperatures))
    for axis, temperature in zip(axes, temperatures, strict=True):
        _bars(axis, rows, temperature)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=8, frameon=False)
    _save(figure, path)


def draw_by_concurrency(rows: Sequence[dict[str, Any]], path: Path | BinaryIO) -> None:
    """Speed-up over the number of requests at a time: one panel for each kind and temperature, lines span the turns."""
    rows = [row for row in rows if not row.get("rate")]
    panels = list(dict.fromkeys((row["kind"], row["temperature"]) for row in rows))
    figure, axes = _figure(len(panels), 3.4 * len(panels), 3.2)
    for axis, (kind, temperature) in zip(axes, panels, strict=True):
        same = [row for row in rows if (row["kind"], row["temperature"]) == (kind, temperature)]
        for method in dict.fromkeys(row["method"] for row in same if row["method"] != "plain"):
            own = sorted((row for row in same if row["method"] == method), key=lambda row: row["concurrency"])
            x = [row["concurrency"] for row in own]
            colour = COLOURS.get(method, OTHER)
            (line,) = axis.plot(x, [row["speedup"] for row in own], "o-", color=colour, markersize=4, label=method)
            low, high = ([row[f"speedup_{end}"] for row in own] for end in ("low", "high"))
            axis.vlines(x, low, high, color=line.get_color(), linewidth=1, alpha=0.6)
        numbers = sorted({row["concurrency"] for row in same})
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, [str(n) for n in numbers])
        axis.axhline(1.0, color=COLOURS["plain"], linestyle="--", label="plain")
        drawn = "greedy" if temperature == 0 else f"T = {temperature:g}"
        axis.set(title=f"{kind}, {drawn}", xlabel="requests at a time", ylabel="speed-up over plain")
        axis.legend(fontsize=7)
    _save(figure, path)


def draw_acceptance(rows: Sequence[dict[str, Any]], path: Path | BinaryIO) -> None:
    """Share of steps that accept each draft position, at the lowest concurrency: one panel for each method that drafts."""
    lowest = min(row["concurrency"] for row in rows)
    drafted = [
        row for row in rows if row["concurrency"] == lowest and not row.get("rate") and sum(row["acceptance_histogram"])
    ]
    methods = list(dict.fromkeys(row["method"] for row in drafted))
    figure, axes = _figure(max(1, len(methods)), 3.4 * max(1, len(methods)), 3.2)
    for axis, method in zip(axes, methods, strict=False):
        for row in (row for row in drafted if row["method"] == method):
            counts = row["acceptance_histogram"]
            reached = [sum(counts[j:]) / sum(counts) for j in range(1, len(counts))]
            drawn = "greedy" if row["temperature"] == 0 else f"T = {row['temperature']:g}"
            axis.plot(range(1, len(counts)), reached, "o-", markersize=4, label=f"{row['kind']}, {drawn}")
        axis.set(title=method, xlabel="draft position", ylabel="share of steps that accept it", ylim=(0, 1))
        axis.legend(fontsize=7)
    _save(figure, path)


def draw_costs(costs: Sequence[dict[str, Any]], path: Path | BinaryIO) -> None:
    """A speculative step in plain steps, split into checking (v) and drafting (K times c), by requests at a time."""
    figure, (axis,) = _figure(1, 5.2, 3.2)
    labels = [f"{cost['concurrency']} at a time\nK = {cost['num_speculative_tokens']}" for cost in costs]
    verify = [cost["verify"] for cost in costs]
    draft = [max(0.0, cost["draft"]) * cost["num_speculative_tokens"] for cost in costs]
    axis.bar(labels, verify, 0.5, color=COLOURS["plain"], label="checking, v")
    axis.bar(labels, draft, 0.5, bottom=verify, color=COLOURS["draft"], label="drafting, K · c")
    axis.vlines(
        range(len(costs)),
        [c["verify_low"] for c in costs],
        [c["verify_high"] for c in costs],
        color="black",
        linewidth=1,
    )
    axis.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axis.set(ylabel="plain steps")
    axis.legend(fontsize=8)
    _save(figure, path)
