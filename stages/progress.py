"""Progress of long work: a bar with rate and time left on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Advance = Callable[..., None]
"""``advance(amount=1, note="")``: how much was done since the last call, and what to say beside the bar."""

LOG_EVERY_S = 15.0

ENOUGH = 0.01
"""Share of the work before which its rate says nothing of the time left: the first piece also warms up."""


def log(line: str) -> None:
    """Prints one line of narration to standard error, where it does not mix with results."""
    print(line, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


@contextmanager
def _bar(description: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    started, seen = time.monotonic(), 0.0
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(description, total=total, completed=int(done), rate="", note="")

        def advance(amount: float = 1, note: str = "") -> None:
            nonlocal seen
            seen += amount
            rate = seen / max(time.monotonic() - started, 1e-9)
            bars.update(task, advance=amount, rate=f"{rate:,.1f} {unit}/s", note=note)

        yield advance


@contextmanager
def _lines(description: str, total: float, unit: str, done: float) -> Iterator[Advance]:
    started, last, seen = time.monotonic(), time.monotonic(), 0.0

    def advance(amount: float = 1, note: str = "") -> None:
        nonlocal last, seen
        seen += amount
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            last = now
            rate = seen / (now - started)
            left = f", {_duration((total - done - seen) / rate)} left" if seen >= ENOUGH * total else ""
            log(f"{description}: {done + seen:,.0f} of {total:,.0f} {unit}, {rate:,.1f}/s{left} {note}".rstrip())

    yield advance
    log(f"{description}: {done + seen:,.0f} {unit} in {_duration(time.monotonic() - started)}")


@contextmanager
def progress(description: str, total: float, unit: str, done: float = 0) -> Iterator[Advance]:
    """Shows progress of ``total`` units of work; ``done`` of them were finished by an earlier run."""
    shown = _bar if sys.stderr.isatty() else _lines
    with shown(description, total, unit, done) as advance:
        yield advance
