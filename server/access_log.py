"""The access log: one JSON line per request, without anything of its prompt or answer.

Requests only leave a note in memory. A thread of its own writes the notes a few times a second, so neither the work nor a
reader of the log that has stopped reading holds up a request.
"""

from __future__ import annotations

import datetime
import json
import queue
import sys
import threading
from typing import Any, NamedTuple, TextIO

from server.acceptance import AcceptanceRecord
from server.exchange import CLIENT_GONE, Exchange
from server.pools import NO_DRAFT
from server.reception import Visit

GATHER_S = 0.1
"""How long notes gather before they are written."""
CLOSE_S = 2.0
MAX_MODEL_CHARS = 100


class Note(NamedTuple):
    """A finished request."""

    route: str
    visit: Visit
    exchange: Exchange


def line(note: Note) -> dict[str, Any]:
    """What the log says of one request. What is not known, or does not apply, is null."""
    visit, exchange = note.visit, note.exchange
    draft = NO_DRAFT if exchange.served_by is None else exchange.served_by[1]
    record = exchange.acceptance if isinstance(exchange.acceptance, AcceptanceRecord) else None
    at = datetime.datetime.fromtimestamp(visit.arrived_at, datetime.UTC)
    return {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": visit.request_id,
        "tenant": exchange.tenant,
        "route": note.route,
        "model": None if visit.model is None else visit.model[:MAX_MODEL_CHARS],
        "draft": None if draft == NO_DRAFT else draft,
        "status": exchange.status,
        "refusal": None if visit.refusal is None else visit.refusal.code,
        "client_gone": exchange.status == CLIENT_GONE,
        "queued_s": _seconds(exchange.queued_s),
        "ttft_s": _seconds(exchange.ttft_s),
        "e2e_s": _seconds(exchange.e2e_s),
        "prompt_tokens": None if exchange.usage is None else exchange.usage.prompt_tokens,
        "output_tokens": None if exchange.usage is None else exchange.usage.output_tokens,
        "draft_tokens": None if record is None else record.num_draft_tokens,
        "accepted_tokens": None if record is None else record.num_accepted_tokens,
    }


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


class AccessLog:
    """Writes the lines.

    Args:
        stream: where they go.
        max_waiting: how many notes are kept for a reader that does not read; further ones are only counted.
    """

    def __init__(self, stream: TextIO | None = None, max_waiting: int = 10_000):
        self._stream = stream or sys.stderr
        self._notes: queue.SimpleQueue[Note | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._dropped = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def note(self, route: str, visit: Visit, exchange: Exchange) -> None:
        """Leaves a finished request to be written."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
            self._thread.start()
        if self._notes.qsize() < self._max_waiting:
            self._notes.put(Note(route, visit, exchange))
        else:
            self._dropped += 1

    def close(self) -> None:
        """Writes what is left; waits for that, but not for long."""
        self._closing.set()
        self._notes.put(None)
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _write_all(self) -> None:
        done = False
        while not done:
            notes = [self._notes.get()]
            self._closing.wait(GATHER_S)
            while not self._notes.empty():
                notes.append(self._notes.get())
            done = None in notes
            self._write([note for note in notes if note is not None])

    def _write(self, notes: list[Note]) -> None:
        lines = [json.dumps(line(note)) for note in notes]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(json.dumps({"access_log_lines_dropped": dropped}))
        try:
            self._stream.write("".join(f"{text}\n" for text in lines))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more: requests go on
            pass
