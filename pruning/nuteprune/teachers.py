"""Which version of the resident model teaches at which step: pure functions of counts.

A version is a snapshot (by its index, oldest first) or None, the intact model. While the sparsity grows, the teacher is a little
less sparse than the student; once the target is reached, it slides back towards the intact model.
"""

from __future__ import annotations

from collections.abc import Callable


def snapshot_due(sparsity: float, last: float, every: float) -> bool:
    """Whether the sparsity has grown by ``every`` since the last snapshot (0 before the first)."""
    return sparsity - last >= every


def reached(sparsity: float, wanted: float, every: float) -> bool:
    """Whether the search has arrived: the expected sparsity is within half a snapshot's distance of the wanted one.

    No source says when the target counts as reached; the Lagrangian approaches it from below.
    """
    return sparsity >= wanted - every / 2


def growing(num_snapshots: int, gap: int) -> int | None:
    """The teacher below the target: the snapshot ``gap`` entries back, or the intact model when there are fewer."""
    return num_snapshots - gap if num_snapshots >= gap else None


def sliding(remaining: int, steps: int, num_snapshots: int, gap: int) -> int | None:
    """The teacher once the target is reached: from about ``gap`` entries back, in equal intervals, to the intact model.

    The paper's interval is I = max(1, steps // (N + 1)) and its phase remaining // I - gap. Rounded down like that, intervals are
    up to half too short, and the teacher would leap forward to the student's newest snapshots, or, with fewer steps than
    snapshots, far back. Here the interval is steps / (N + 1), which is the same where that is whole, and what counts is what is
    left after the step, so that the slide begins at the growing's last teacher and its last step is the intact model's.

    Args:
        remaining: steps of the search that are left, this one among them.
        steps: how many were left when the target was reached.
        num_snapshots: N, as many as there were when it was reached.
        gap: as for ``growing``.
    """
    phase = (remaining - 1) * (num_snapshots + 1) // max(1, steps) - gap
    return phase if phase >= 0 else None


Schedule = Callable[[int, int, int | None], int | None]
"""(snapshots so far, steps remaining, steps that remained when the target was reached or None) -> teacher."""


def numerous(gap: int) -> Schedule:
    """The paper's schedule."""

    def choose(num_snapshots: int, remaining: int, steps: int | None) -> int | None:
        return growing(num_snapshots, gap) if steps is None else sliding(remaining, steps, num_snapshots, gap)

    return choose


def intact(num_snapshots: int, remaining: int, steps: int | None) -> int | None:
    """The baseline: always the intact model."""
    return None
