"""Whether an engine is well: by what it answers to probes, and by whether it gets on with its requests.

Pure: readings of the clock are passed in. An engine that has requests but sends no byte is asked for one token of its
own after half the allowed time, so that long answers in one piece are not mistaken for a stand-still.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Probe(enum.Enum):
    """What came of asking an engine whether it is well."""

    WELL = "well"
    GONE = "gone"
    """Nobody listens, the connection broke, or it says itself that it is not well."""
    SILENT = "silent"
    """No answer in time: dead, or only busy."""


SILENT_PROBES = 2
"""So many silent probes in a row, without a byte between them, are an engine that is away."""


@dataclass
class Health:
    """What is known of one engine.

    Attributes:
        stuck_s: time without a byte, while it has requests, after which an engine is taken for stuck.
        reachable: what probes say; None before the first.
        answered: whether it has ever said that it is well; something else than vLLM may have no way to.
        stuck: whether it has been taken for stuck and has not shown otherwise since.
        running: requests it has.
        away: how many times it went away.
    """

    stuck_s: float
    reachable: bool | None = None
    answered: bool = False
    stuck: bool = False
    running: int = 0
    away: int = 0
    _progress_s: float = 0.0
    _silent: int = field(default=0)

    def probed(self, probe: Probe) -> None:
        """Notes what a probe said."""
        self._silent = self._silent + 1 if probe is Probe.SILENT else 0
        before = self.reachable
        if probe is Probe.WELL:
            self.reachable = self.answered = True
        elif probe is Probe.GONE or self._silent >= SILENT_PROBES:
            self.reachable = False
        if self.reachable is False:
            self.away += before is True
            self.stuck = False

    @property
    def well(self) -> bool:
        """Whether it can be given requests, as far as is known."""
        return self.reachable is not False and not self.stuck

    def begin(self, now_s: float) -> None:
        """Notes that it got a request."""
        if not self.running:
            self._progress_s = now_s
        self.running += 1

    def end(self) -> None:
        """Notes that it is done with a request, however that ended."""
        self.running -= 1

    def progress(self, now_s: float) -> None:
        """Notes that bytes came, or that it generated a token for a probe."""
        self._progress_s = now_s
        self._silent = 0
        self.stuck = False

    def quiet_s(self, now_s: float) -> float:
        """Time without a byte; 0 while it has nothing to do."""
        return now_s - self._progress_s if self.running else 0.0

    def judge(self, now_s: float) -> bool:
        """Takes it for stuck if it has been quiet for too long; True when it should be asked for a token."""
        quiet_s = self.quiet_s(now_s)
        self.stuck = self.stuck or quiet_s >= self.stuck_s
        return self.stuck or quiet_s >= self.stuck_s / 2
