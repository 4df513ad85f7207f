"""What the gateway reads in a stream that it relays: a pure filter from bytes to bytes, without any waiting."""

from __future__ import annotations

from typing import Any

from server import reporting, sse
from server.acceptance import is_usage_chunk, read_acceptance, read_usage
from server.errors import Refusal
from server.exchange import Exchange
from server.inbound import Inbound, Route
from server.json_text import JsonText
from server.metrics import Metrics
from server.settings import GatewaySettings
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
        settings: events longer than ``max_event_bytes`` pass unread; with ``usage_details`` the usage chunk tells of
            acceptance.
        metrics: is told of each gap between chunks.
    """

    def __init__(self, route: Route, inbound: Inbound, exchange: Exchange, settings: GatewaySettings, metrics: Metrics):
        self.failed = False
        """The engine reported an error inside the stream."""
        self.engine_failed = False
        """And it was the engine's own, as far as it says."""
        self.opening_error: Refusal | None = None
        """The error that the stream began with; it can still become the status of the answer."""
        self.done = False
        """The last event has passed."""
        self._route = route
        self._wants_usage = inbound.wants_usage
        self._exchange = exchange
        self._metrics = metrics
        self._usage_details = settings.usage_details
        self._splitter = sse.EventSplitter(settings.max_event_bytes)

    def feed(self, data: bytes) -> bytes:
        """What of these bytes (and of an event begun before) goes to the client now."""
        return b"".join(map(self._outgoing, self._splitter.feed(data)))

    def check_end(self) -> None:
        """Checks that the stream ended as it should.

        Raises:
            EngineFailed: when it was cut.
        """
        if not self.done and (self._route.generates or self._splitter.rest()):
            raise EngineFailed("the stream ended without its last event")

    def _outgoing(self, event: sse.Event) -> bytes:
        """What of an event goes to the client."""
        data = sse.data_of(event.data) if event.whole else b""
        if data is None:
            return event.data
        if data == sse.DONE:
            self.done = True
        elif data.startswith(b'{"error"'):
            self._read_error(data)
        elif USAGE_KEY in data and (chunk := self._read_usage(data)) is not None:
            return self._told(event.data, data, chunk)
        elif self._has_content(data):
            self._see_chunk()
        return event.data

    def _has_content(self, data: bytes) -> bool:
        """Whether an event holds a piece of the answer."""
        if self._route.unrecorded:  # events tell of an answer's state, too, before there is anything of it and after
            return str((sse.json_of(data) or {}).get("type")).endswith(".delta")
        return self._exchange.first_s is not None or not only_names_the_role(sse.json_of(data))

    def _see_chunk(self) -> None:
        gap_s = self._exchange.see_chunk()
        if gap_s is not None:
            self._metrics.chunk_gap(self._route.name, self._exchange, gap_s)

    def _told(self, event: bytes, data: bytes, chunk: JsonText) -> bytes:
        """The usage chunk as the client gets it: not at all, unless it asked."""
        if not self._wants_usage or not self._usage_details:
            return event if self._wants_usage else b""
        return reporting.event_with_details(event, data, chunk, self._exchange.acceptance)

    def _read_error(self, data: bytes) -> None:
        self.failed = True
        error = (sse.json_of(data) or {}).get("error")
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code < 500 else 502
        self.engine_failed = status == 502
        if self._exchange.first_s is None and isinstance(error, dict):
            param = error.get("param")
            kind = "engine_refused" if status < 500 else "engine_failed"
            self.opening_error = Refusal(status, str(error.get("message")), kind, str(param) if param else None)

    def _read_usage(self, data: bytes) -> JsonText | None:
        """Takes usage and acceptance from a chunk; the chunk when it is the one that holds nothing else."""
        chunk = JsonText.read(data) if self._route.generates else None
        if chunk is None:
            return None
        usage = read_usage(chunk.values)
        if usage is not None:
            self._exchange.usage = usage
        if not is_usage_chunk(chunk.values):
            return None
        self._exchange.acceptance = read_acceptance(chunk.values)
        return chunk
