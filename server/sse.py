"""Server-sent events, read without changing a byte: the events of a stream, joined again, are the stream."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

END_OF_EVENT = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
"""A blank line, whatever the line ends are; atomic, so that one CR LF is never read as two ends of line."""

DONE = b"[DONE]"


class Event(NamedTuple):
    """A piece of a stream."""

    data: bytes
    """The bytes as they came, the blank line at the end included."""
    whole: bool
    """False for a piece of an event that was too long to hold back."""


class EventSplitter:
    """Cuts a stream into events, however the network cut it into chunks.

    Args:
        max_event_bytes: an event that grows longer is given out in pieces that are not ``whole``.
    """

    def __init__(self, max_event_bytes: int):
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._inside_long_event = False

    def feed(self, data: bytes) -> list[Event]:
        """The events that ``data`` completes."""
        self._buffer += data
        events = []
        while (end := self._next_end()) is not None:
            events.append(Event(self._take(end), not self._inside_long_event))
            self._inside_long_event = False
        if len(self._buffer) > self._max_event_bytes:
            # The last three bytes stay, because a blank line may begin in them.
            events.append(Event(self._take(len(self._buffer) - 3), False))
            self._inside_long_event = True
        return events

    def rest(self) -> bytes:
        """What is left when the stream has ended: nothing, unless it was cut in the middle of an event."""
        return self._take(len(self._buffer))

    def _next_end(self) -> int | None:
        found = END_OF_EVENT.search(self._buffer, self._searched)
        if found is None:
            self._searched = max(0, len(self._buffer) - 3)
            return None
        if found.end() == len(self._buffer) and self._buffer.endswith(b"\r"):
            return None  # a line feed may follow that belongs to this end of line
        return found.end()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._searched = 0
        return taken


def data_of(event: bytes) -> bytes | None:
    """The text of an event's ``data`` lines, or None for comments and keep-alives."""
    stripped = event.strip(b"\r\n")
    if b"\n" not in stripped and b"\r" not in stripped:
        return stripped[5:].lstrip(b" ") if stripped.startswith(b"data:") else None
    lines = [line[5:].lstrip(b" ") for line in stripped.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def json_of(data: bytes) -> dict[str, Any] | None:
    """The JSON object in an event's data, or None."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
