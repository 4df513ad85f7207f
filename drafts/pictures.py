"""Pictures: the choice of K, and the comparison. The only place that knows matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drafts.choosing import Choice, Measurements
from stages.folders import storage_errors

COLOURS = {"plain": "#8a8f98", "ngram": "#d98e32", "draft": "#2f6fb0"}


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    return figure, list(axes)


def _save(figure: Any, path: Path) -> None:
    with storage_errors(path):
        figure.savefig(path)


def draw_training(losses: Sequence[Sequence[float]], path: Path) -> None:
    """Loss over judged positions of a recovery; ``losses`` are pairs (positions, loss)."""
    figure, (axis,) = _figure(1, 6, 3)
    axis.plot([pair[0] for pair in losses], [pair[1] for pair in losses], color=COLOURS["draft"], linewidth=1)
    axis.set(xlabel="positions trained on", ylabel="loss", title="Recovery", yscale="log")
    _save(figure, path)


def draw_choice(choice: Choice, measurements: Measurements, path: Path) -> None:
    """Predicted speed-up over the number of draft tokens (chosen point marked), and acceptance by position."""
    figure, (left, right) = _figure(2, 9, 3.4)
    numbers, speedups = zip(*choice.predicted, strict=True)
    left.plot(numbers, speedups, "o-", color=COLOURS["draft"])
    left.axhline(1.0, color=COLOURS["plain"], linestyle="--", label="plain")
    if choice.num_speculative_tokens:
        best = dict(choice.predicted)[choice.num_speculative_tokens]
        left.plot(
            [choice.num_speculative_tokens], [best], "o", markersize=12, fillstyle="none", color="black", label="chosen"
        )
    left.set(
        xlabel="draft tokens per step",
        ylabel="predicted speed-up",
        title="Predicted from measured steps and acceptance",
    )
    left.legend()
    for item in measurements.acceptances:
        steps = sum(item.histogram)
        reached = [sum(item.histogram[j:]) / steps for j in range(1, len(item.histogram))]
        right.plot(range(1, len(item.histogram)), reached, "o-", label=f"{item.kind}, T = {item.temperature:g}")
    right.set(
        xlabel="draft position", ylabel="share of steps that accept it", ylim=(0, 1), title="Acceptance by position"
    )
    right.legend(fontsize=8)
    _save(figure, path)


def _bars(axis: Any, rows: Sequence[dict[str, Any]], temperature: float) -> None:
    chosen = [row for row in rows if row["temperature"] == temperature]
    places = list(dict.fromkeys((row["kind"], row["concurrency"]) for row in chosen))
    methods = list(dict.fromkeys(row["method"] for row in chosen))
    width = 0.8 / len(methods)
    for offset, method in enumerate(methods):
        own = {(row["kind"], row["concurrency"]): row for row in chosen if row["method"] == method}
        heights = [own[place]["speedup"] for place in places]
        x = [i + offset * width for i in range(len(places))]
        axis.bar(x, heights, width * 0.92, label=method, color=COLOURS.get(method))
        low, high = ([own[place][f"speedup_{end}"] for place in places] for end in ("low", "high"))
        axis.vlines(x, low, high, color="black", linewidth=1)  # a ratio of totals may lie outside the turns' range
        for a, b in zip(x, heights, strict=True):
            axis.text(a, 0.04, f"{b:.2f}", ha="center", va="bottom", fontsize=7, color="white")
    axis.set_xticks([i + width * (len(methods) - 1) / 2 for i in range(len(places))])
    axis.set_xticklabels([f"{kind}\n{concurrency} at a time" for kind, concurrency in places], fontsize=8)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.set(title="greedy" if temperature == 0 else f"sampled, T = {temperature:g}", ylabel="speed-up over plain")
    axis.legend(fontsize=8)


def draw_comparison(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Speed-up over plain decoding by method, kind and concurrency, one panel a temperature; lines span the turns."""
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, axes = _figure(len(temperatures), 4.8 * len(temperatures), 3.6)
    for axis, temperature in zip(axes, temperatures, strict=True):
        _bars(axis, rows, temperature)
    _save(figure, path)
