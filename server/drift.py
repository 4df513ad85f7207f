"""Whether a draft still does what was measured when it was chosen: pure, the time is passed in.

Traffic changes, targets are fine-tuned on; then fewer draft tokens are accepted and speculation may cost more than it gains.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from server.acceptance import AcceptanceRecord
from server.sliding import SlidingSums
from stages.settings import Settings


class DriftSettings(Settings):
    """When a draft counts as stale. Thresholds are shares of the mean acceptance length that ``serving.json`` expects."""

    window_s: float = Field(default=300.0, gt=0, description="the estimate slides over this time")
    min_drafts: int = Field(default=500, ge=1, description="smaller samples decide nothing, and older drafts stay in")
    stale_below: float = Field(default=0.8, gt=0, le=1)
    fresh_above: float = Field(default=0.9, gt=0, description="a stale draft is taken back above this")
    probing_share: float = Field(
        default=0.05, gt=0, lt=1, description="traffic that stale drafts keep, to be judged by"
    )

    @model_validator(mode="after")
    def _check_hysteresis(self) -> Self:
        if self.stale_below >= self.fresh_above:
            message = f"'stale_below' ({self.stale_below:g}) must be less than 'fresh_above' ({self.fresh_above:g})"
            raise PydanticCustomError("hysteresis", message)
        return self


def _length(chance: float, tokens: float) -> float:
    """Mean acceptance length where each of ``tokens`` draft tokens is accepted with ``chance`` once those before it were."""
    whole = int(tokens)
    return 1 + sum(chance**i for i in range(1, whole + 1)) + (tokens - whole) * chance ** (whole + 1)


@functools.cache
def _chance(length: float, tokens: float) -> float:
    """The chance that gives this mean acceptance length, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _length(middle, tokens) < length else (low, middle)
    return high


@dataclass(frozen=True)
class Expected:
    """What ``serving.json`` expects of a draft.

    The figures are those of one request at a time. Where the engine proposes fewer draft tokens the more requests there
    are, fewer can be accepted of a draft that is as good as ever: then what is expected of that many tokens counts.
    """

    length: float
    rate: float | None = None
    """Acceptance rate; with it the number of draft tokens is known that the length was measured with."""

    def at(self, tokens: float) -> float:
        """The mean acceptance length that is expected of ``tokens`` draft tokens (on average); never more than ``length``."""
        if not self.rate or self.length <= 1:
            return self.length
        stated = (self.length - 1) / self.rate
        return self.length if tokens >= stated else _length(_chance(self.length, stated), tokens)


class State(enum.Enum):
    """What is thought of a draft."""

    FRESH = "fresh"
    STALE = "stale"


@dataclass(frozen=True)
class Turn:
    """A draft's state has changed."""

    draft: str
    state: State
    seen: float
    """Mean acceptance length of the sample that decided."""
    expected: float
    """Of as many draft tokens as the sample had."""

    def line(self) -> str:
        """For the log."""
        compared = f"mean acceptance length {self.seen:.2f}, expected {self.expected:.2f}"
        return f"drift: draft {self.draft!r} is {self.state.value} ({compared})"


class DriftGuard:
    """Watches one draft.

    A turn empties the sample: the next one is decided by what came after it. No sample, however old, is ever decided by
    fewer than ``min_drafts`` drafts.

    Args:
        draft: its name.
        expected: as ``serving.json`` has it.
        settings: thresholds and sample.
    """

    def __init__(self, draft: str, expected: Expected, settings: DriftSettings):
        self.draft = draft
        self.expected = expected
        self.state = State.FRESH
        self.settings = settings
        self._sums = SlidingSums(settings.window_s, settings.min_drafts)

    def use(self, settings: DriftSettings) -> None:
        """Other thresholds, window and size of the sample from now on; what was seen stays in it."""
        self.settings = settings
        self._sums.resize(settings.window_s, settings.min_drafts)

    def see(self, now: float, record: AcceptanceRecord) -> Turn | None:
        """Takes a request's record in; the turn when that changes the state."""
        if record.num_drafts:
            self._sums.add(now, record.num_drafts, record.num_accepted_tokens, record.num_draft_tokens)
        seen = self.length(now)
        if seen is None:
            return None
        drafts, _, drafted = self._sums.sums(now)
        expected = self.expected.at(drafted / drafts)
        if not self._turns(seen / expected):
            return None
        self.state = State.STALE if self.state is State.FRESH else State.FRESH
        self._sums.clear()
        return Turn(self.draft, self.state, seen, expected)

    def length(self, now: float) -> float | None:
        """The sliding mean acceptance length; None while the sample is too small."""
        drafts, accepted, _ = self._sums.sums(now) or (0, 0, 0)
        return 1 + accepted / drafts if drafts >= self.settings.min_drafts else None

    def _turns(self, share: float) -> bool:
        """Whether this share of what is expected changes the state."""
        if self.state is State.FRESH:
            return share < self.settings.stale_below
        return share > self.settings.fresh_above
