"""Limits on what comes before a body: how large a request's headers may be, and how long they may take.

uvicorn has neither with its faster parser; bodies are limited where they are read (`client.read_body`).
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import Refusal, error_body


def _answer(refusal: Refusal, reason: str) -> bytes:
    body = error_body(refusal)
    head = (
        f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class LimitedProtocol(HttpToolsProtocol):
    """One connection; `limited_protocol` makes the class with its limits."""

    max_header_bytes: int
    header_timeout_s: float
    _num_header_bytes = 0
    _in_headers = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request's headers are due from now on."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes before a body; a header is known to the parser only when it has come whole."""
        super().data_received(data)
        if self._in_headers and not self.transport.is_closing():
            self._num_header_bytes += len(data)
            self._check_size()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers, self._num_header_bytes = True, 0
        if self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def on_headers_complete(self) -> None:
        """Lets a request through whose headers are not too large."""
        self._in_headers = False
        self._disarm()
        self._num_header_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._check_size():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Nothing of a request that was refused."""
        if self.cycle is not None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing of a request that was refused."""
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser cannot read in the shape of all errors, unless it has been refused already."""
        self._refuse(Refusal(400, "this is not a request of HTTP/1.1", "malformed_http"), "Bad Request")

    def _check_size(self) -> bool:
        if self._num_header_bytes <= self.max_header_bytes:
            return True
        message = f"the request line and headers are larger than the {self.max_header_bytes} bytes allowed here"
        self._refuse(Refusal(431, message, "headers_too_large"), "Request Header Fields Too Large")
        return False

    def _too_slow(self) -> None:
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # the request before it still has the connection
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)
            return
        self._timer = None
        message = f"the headers did not arrive within {self.header_timeout_s:g} s"
        self._refuse(Refusal(408, message, "header_timeout"), "Request Timeout")

    def _refuse(self, refusal: Refusal, reason: str) -> None:
        """Answers, unless an earlier request is still being answered on this connection, and closes it."""
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_answer(refusal, reason))
            self.transport.close()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_protocol(max_header_bytes: int, header_timeout_s: float) -> type[LimitedProtocol]:
    """The protocol that uvicorn is to speak, with its limits."""
    limits = {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
