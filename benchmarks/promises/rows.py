"""What came of a promise: rows of `promises` in benchmarks/gateway.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.folders import write_text


@dataclass(frozen=True)
class Row:
    """One promise and its tries."""

    name: str
    """Under which it is tried; several rows can have the same."""
    promise: str
    tried: int
    kept: int
    worst: float | None
    """The worst value seen, in ``unit``."""
    unit: str
    limit: float | None = None
    """What ``worst`` was promised to stay under."""
    is_kept: bool = False
    """Whether it counts as kept: for all tries, unless the promise itself speaks of a share or of an end."""
    more: dict[str, Any] = field(default_factory=dict)
    """Other figures, and the settings of the gateway."""


def timed(name: str, promise: str, found_s: Sequence[float], limit_s: float, **more: Any) -> Row:
    """A promise of a time, from seconds; told in milliseconds where it is one of less than a second."""
    scale, unit = (1e3, "ms") if limit_s < 1 else (1.0, "s")
    kept = sum(one <= limit_s for one in found_s)
    worst = round(scale * max(found_s), 3) if found_s else None
    whole = bool(found_s) and kept == len(found_s)
    return Row(name, promise, len(found_s), kept, worst, unit, scale * limit_s, whole, more)


def counted(name: str, promise: str, kept: Iterable[bool], unit: str = "lost", **more: Any) -> Row:
    """A promise that nothing is lost; the worst value is how many were."""
    tries = list(kept)
    lost = len(tries) - sum(tries)
    return Row(name, promise, len(tries), sum(tries), lost, unit, 0, bool(tries) and not lost, more)


def merged(before: Sequence[dict[str, Any]], found: Sequence[Row], order: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the promises that were tried now, beside those of others that were tried before."""
    now = {row.name for row in found}
    rows = [row for row in before if row.get("name") not in now] + [asdict(row) for row in found]
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))


def write(path: Path, found: Sequence[Row], order: Sequence[str]) -> None:
    """Puts rows into the file; all else in it stays."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    record["promises"] = merged(record.get("promises", []), found, order)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1) + "\n")


def line(row: Row) -> str:
    """One row for people."""
    said = "kept" if row.is_kept else "NOT KEPT"
    worst = "" if row.worst is None else f", at worst {row.worst:g} {row.unit}"
    return f"{row.name}: {row.promise}: {row.kept:,} of {row.tried:,}{worst}: {said}"
