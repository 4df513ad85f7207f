"""Server-sent events, read from bytes as they come."""

from __future__ import annotations

DONE = b"[DONE]"


class Events:
    """Finds the events in a stream that is cut anywhere: in an event, a line, a character."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that are complete now; comments, names and ids are passed over."""
        if not piece:
            return []
        halved, self._after_cr = self._after_cr and piece.startswith(b"\n"), piece.endswith(b"\r")
        if halved:  # the second half of a line's end
            piece = piece[1:]
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [event for line in lines if (event := self._line(line)) is not None]

    def _line(self, line: bytes) -> bytes | None:
        if not line:
            event, self._data = self._data, []
            return b"\n".join(event) if event else None
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            self._data.append(b"")
        return None
