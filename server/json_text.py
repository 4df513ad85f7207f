"""A JSON object together with its text, so that one value can be replaced and every other byte stays."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

WHITESPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def _skip(text: str, at: int) -> int:
    found = WHITESPACE.match(text, at)
    assert found is not None  # the pattern matches nothing, too
    return found.end()


@dataclass(frozen=True)
class JsonText:
    """A JSON object as it was written."""

    text: str
    values: dict[str, Any]
    """Of a key given twice, the last counts."""
    spans: dict[str, tuple[int, int]]
    """Where in the text each value stands."""

    @classmethod
    def read(cls, data: bytes) -> JsonText | None:
        """Reads UTF-8 that holds one JSON object and nothing else; None when it does not."""
        try:
            return cls._read(data.decode())
        except (ValueError, RecursionError, IndexError):
            return None

    @classmethod
    def _read(cls, text: str) -> JsonText | None:
        values: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        at = _skip(text, 0)
        if text[at] != "{":
            return None
        at = _skip(text, at + 1)
        if text[at] == "}":
            return cls(text, values, spans) if _skip(text, at + 1) == len(text) else None
        while True:
            if text[at] != '"':
                return None
            key, at = DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at] != ":":
                return None
            start = _skip(text, at + 1)
            values[key], end = DECODER.raw_decode(text, start)
            spans[key] = start, end
            at = _skip(text, end)
            if text[at] == "}":
                return cls(text, values, spans) if _skip(text, at + 1) == len(text) else None
            if text[at] != ",":
                return None
            at = _skip(text, at + 1)

    def replaced(self, key: str, value: Any) -> bytes:
        """The text with another value for a key that it has.

        Raises:
            ValueError: the value is not JSON (NaN, Infinity).
        """
        start, end = self.spans[key]
        written = json.dumps(value, allow_nan=False, separators=(",", ":"))
        return (self.text[:start] + written + self.text[end:]).encode()
