"""How much is tried, and where."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Plan:
    """Sizes of all promises. Times are in seconds."""

    tries: int = 200
    """Of each promise; where every request is a try, as many as the time gives."""
    unloaded_s: float = 30.0
    overload_s: float = 60.0
    recovery_s: float = 30.0
    mixed_s: float = 600.0
    warm_up_s: float = 60.0


QUICK = Plan(tries=20, unloaded_s=3.0, overload_s=6.0, recovery_s=8.0, mixed_s=30.0, warm_up_s=10.0)


@dataclass(frozen=True)
class Place:
    """What every promise gets to work with."""

    folder: Path
    """For logs and files of the gateways."""
    core: int | None = None
    """The processor of the gateway."""
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of requests."""
