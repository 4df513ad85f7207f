"""Pictures of a load test. The only place of this package that knows matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

COLOURS = {"plain": "#8a8f98", "draft": "#2f6fb0"}
UNITS = {"closed": "users at a time", "open": "arrivals a second"}
STYLES = {"p50": "-", "p95": "--", "p99": ":"}

Rows = Sequence[dict[str, Any]]


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


def levelled(rows: Rows) -> list[dict[str, Any]]:
    """Rows that can be drawn over users or arrivals."""
    return [row for row in rows if row["level"] is not None]


def _loops(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["loop"] for row in levelled(rows)))


def _line(axis: Any, rows: Rows, figure: str, scale: float = 1.0, label: str = "", **style: Any) -> None:
    """One server's figure over levels."""
    points = sorted((row["level"], row[figure] * scale) for row in rows if row.get(figure) is not None)
    if points:
        name = rows[0]["target"]
        axis.plot(
            *zip(*points, strict=True), marker="o", markersize=4, color=COLOURS.get(name), label=label or name, **style
        )


def _finish(axis: Any, rows: Rows, loop: str) -> None:
    levels = sorted({row["level"] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.minorticks_off()
    axis.set_xlabel(UNITS[loop])
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7)


def _by_level(rows: Rows, file: BinaryIO, panels: Sequence[tuple[str, str, str]], height: float = 3.2) -> None:
    """One panel for each loop and (figure, words, title)."""
    wanted = [(loop, panel) for loop in _loops(rows) for panel in panels]
    figure, axes = _figure(len(wanted), 3.8 * len(wanted), height)
    for axis, (loop, (name, words, title)) in zip(axes, wanted, strict=True):
        same = [row for row in levelled(rows) if row["loop"] == loop]
        for target in dict.fromkeys(row["target"] for row in same):
            _line(axis, [row for row in same if row["target"] == target], name)
        axis.set(ylabel=words, title=title)
        axis.set_ylim(bottom=0)
        _finish(axis, same, loop)
    figure.savefig(file, format="png")


def draw_throughput(rows: Rows, file: BinaryIO) -> None:
    """Output tokens per second by users at a time and by arrivals."""
    _by_level(rows, file, [("tokens_per_s", "output tokens per second", "Throughput")])


def draw_goodput(rows: Rows, file: BinaryIO) -> None:
    """Share of requests that kept the objective, and how many did in a second."""
    _by_level(
        rows,
        file,
        [("goodput", "share inside the objective", "Goodput"), ("good_per_s", "per second", "Good requests")],
    )


def draw_latency(rows: Rows, file: BinaryIO) -> None:
    """Percentiles of time to first token, per output token, and end to end, by level."""
    panels = [("ttft_s", "to first token"), ("tpot_s", "per output token"), ("e2e_s", "end to end")]
    wanted = [(loop, panel) for loop in _loops(rows) for panel in panels]
    figure, axes = _figure(len(wanted), 3.4 * len(wanted), 3.4)
    for axis, (loop, (name, title)) in zip(axes, wanted, strict=True):
        same = [row for row in levelled(rows) if row["loop"] == loop]
        for target in dict.fromkeys(row["target"] for row in same):
            own = [row for row in same if row["target"] == target]
            for share, style in STYLES.items():
                _line(axis, own, f"{name}_{share}", 1000, f"{target} {share}", linestyle=style, linewidth=1)
        axis.set(ylabel="ms", title=title)
        axis.set_ylim(bottom=0)
        _finish(axis, same, loop)
    figure.savefig(file, format="png")


def draw_gain(rows: Rows, file: BinaryIO) -> None:
    """The draft's gain by level, with its range over turns; under the line it does not pay."""
    loops = [loop for loop in _loops(rows) if any(row["loop"] == loop and row.get("gain") for row in levelled(rows))]
    figure, axes = _figure(len(loops), 4.2 * len(loops), 3.2)
    for axis, loop in zip(axes, loops, strict=True):
        same = [row for row in levelled(rows) if row["loop"] == loop and row.get("gain")]
        for target in dict.fromkeys(row["target"] for row in same):
            own = [row for row in same if row["target"] == target]
            _line(axis, own, "gain")
            ranged = [row for row in own if row["gain_low"] is not None]
            ends = ([row[f"gain_{end}"] for row in ranged] for end in ("low", "high"))
            axis.vlines([row["level"] for row in ranged], *ends, color=COLOURS.get(target), alpha=0.6, linewidth=1)
        axis.axhline(1.0, color=COLOURS["plain"], linestyle="--", label="plain")
        axis.set(ylabel="gain over plain", title="tokens per second" if loop == "closed" else "median end-to-end time")
        _finish(axis, same, loop)
    figure.savefig(file, format="png")


def draw_acceptance(series: dict[str, Sequence[Sequence[float]]], file: BinaryIO) -> None:
    """Acceptance rate over the time of the run."""
    figure, (axis,) = _figure(1, 7, 2.8)
    for target, points in series.items():
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, "o-", markersize=3, linewidth=1, color=COLOURS.get(target), label=target)
    axis.set(xlabel="seconds", ylabel="accepted of proposed", ylim=(0, 1), title="Acceptance over time")
    axis.legend(fontsize=8)
    figure.savefig(file, format="png")
