"""What the gateway reads in a stream that it relays: a pure filter from bytes to bytes, without any waiting."""

from __future__ import annotations

from typing import Any

from server import sse
from server.acceptance import is_usage_chunk, read_acceptance, read_usage
from server.errors import Refusal
from server.exchange import Exchange
from server.inbound import Inbound, Route
from server.metrics import Metrics
from server.upstream import EngineFailed

USAGE_KEY = b'"usage"'
"""Finds the key; inside a JSON text the quotation marks would be escaped."""


def only_names_the_role(payload: dict[str, Any] | None) -> bool:
    """True for the chunk that opens a chat stream before its first token: every delta is empty but for its role."""
    choices = payload.get("choices") if payload is not None else None
    if not isinstance(choices, list) or not choices:
        return False
    return all(
        isinstance(choice, dict)
        and isinstance(delta := choice.get("delta"), dict)
        and choice.get("finish_reason") is None
        and not any(value for key, value in delta.items() if key != "role")
        for choice in choices
    )


class StreamReader:
    """Notes times, usage and acceptance of one stream in its exchange, and leaves out the chunk that only we asked for.

    Args:
        route: streams of routes that generate must end with ``[DONE]``.
        inbound: whether the client asked for the usage chunk.
        exchange: is filled in.
        max_event_bytes: longer events pass unread.
        metrics: is told of each gap between chunks.
    """

    def __init__(self, route: Route, inbound: Inbound, exchange: Exchange, max_event_bytes: int, metrics: Metrics):
        self.failed = False
        """The engine reported an error inside the stream."""
        self.opening_error: Refusal | None = None
        """The error that the stream began with; it can still become the status of the answer."""
        self.done = False
        """The last event has passed."""
        self._route = route
        self._wants_usage = inbound.wants_usage
        self._exchange = exchange
        self._metrics = metrics
        self._splitter = sse.EventSplitter(max_event_bytes)

    def feed(self, data: bytes) -> bytes:
        """What of these bytes (and of an event begun before) goes to the client now."""
        return b"".join(event.data for event in self._splitter.feed(data) if self._passes(event))

    def check_end(self) -> None:
        """Checks that the stream ended as it should.

        Raises:
            EngineFailed: when it was cut.
        """
        if not self.done and (self._route.generates or self._splitter.rest()):
            raise EngineFailed("the stream ended without its last event")

    def _passes(self, event: sse.Event) -> bool:
        data = sse.data_of(event.data) if event.whole else b""
        if data is None:
            return True
        if data == sse.DONE:
            self.done = True
            return True
        if data.startswith(b'{"error"'):
            self._read_error(data)
            return True
        if USAGE_KEY in data and self._read_usage(data):
            return self._wants_usage
        if self._exchange.first_s is None and only_names_the_role(sse.json_of(data)):
            return True
        gap_s = self._exchange.see_chunk()
        if gap_s is not None:
            self._metrics.chunk_gap(self._route.name, self._exchange, gap_s)
        return True

    def _read_error(self, data: bytes) -> None:
        self.failed = True
        error = (sse.json_of(data) or {}).get("error")
        if self._exchange.first_s is None and isinstance(error, dict):
            code, param = error.get("code"), error.get("param")
            status = code if isinstance(code, int) and 400 <= code < 500 else 502
            kind = "engine_refused" if status < 500 else "engine_failed"
            self.opening_error = Refusal(status, str(error.get("message")), kind, str(param) if param else None)

    def _read_usage(self, data: bytes) -> bool:
        """Takes usage and acceptance from a chunk; True when the chunk is the one that holds nothing else."""
        payload = sse.json_of(data)
        if payload is None or not self._route.generates:
            return False
        usage = read_usage(payload)
        if usage is not None:
            self._exchange.usage = usage
        if not is_usage_chunk(payload):
            return False
        self._exchange.acceptance = read_acceptance(payload)
        return True
