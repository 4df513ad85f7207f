"""Sums over a sliding window of time; the time is passed in."""

from __future__ import annotations

from collections import deque


class SlidingSums:
    """Sums of rows of numbers that were added within the last ``window_s`` seconds, in slices of a twentieth of that.

    Args:
        window_s: length of the window.
        keep_at_least: older slices stay for as long as the others' first column sums to less than this: a window of time
            where there is much to see, and of the latest events where there is little.
    """

    SLICES = 20

    def __init__(self, window_s: float, keep_at_least: float = 0):
        self.resize(window_s, keep_at_least)
        self._slices: deque[tuple[float, list[float]]] = deque()
        self._sums: list[float] = []

    def resize(self, window_s: float, keep_at_least: float) -> None:
        """Another window and minimum from now on. What was added stays; slices made before keep their length until they expire."""
        self._slice_s = window_s / self.SLICES
        self._window_s = window_s
        self._keep_at_least = keep_at_least

    def add(self, now: float, *row: float) -> None:
        """Adds a row; rows may grow longer, never shorter."""
        self._expire(now)
        self._sums += [0.0] * (len(row) - len(self._sums))
        if not self._slices or now - self._slices[-1][0] >= self._slice_s:
            self._slices.append((now, []))
        current = self._slices[-1][1]
        current += [0.0] * (len(row) - len(current))
        for index, value in enumerate(row):
            current[index] += value
            self._sums[index] += value

    def sums(self, now: float) -> tuple[float, ...]:
        """The sums by column, as far as rows reached; zeros when nothing is left."""
        self._expire(now)
        return tuple(self._sums)

    def covered_s(self, now: float) -> float:
        """How much of the window has been seen: less than all of it soon after the start."""
        self._expire(now)
        return now - self._slices[0][0] if self._slices else 0.0

    def clear(self) -> None:
        """Forgets everything."""
        self._slices.clear()
        self._sums = []

    def _expire(self, now: float) -> None:
        while self._slices and now - self._slices[0][0] >= self._window_s + self._slice_s:
            oldest = self._slices[0][1]
            if self._sums[0] - oldest[0] < self._keep_at_least:
                break
            for index, value in enumerate(oldest):
                self._sums[index] -= value
            self._slices.popleft()
        if not self._slices:
            self._sums = [0.0] * len(self._sums)  # no rounding is carried along
