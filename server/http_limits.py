"""Limits on what comes before a body (the size of a request's headers, the time they may take) and on what stays behind.

uvicorn has none of them with its faster parser; bodies are limited where they are read (`client.read_body`).
"""

from __future__ import annotations

import asyncio
import socket
import struct

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import Refusal, error_body

UNSENT_S = 60.0
"""How long the client of a connection that is to be closed gets to take what has been written to it."""
CYCLE = "understudy.cycle"
"""Where a request's scope holds uvicorn's own view of it, until the app gets it."""
RESET_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: closing throws away what the kernel holds for a client that may never read it."""


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
    _has_ended_one = False
    _is_lost = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request's headers are due from now on."""
        super().connection_made(transport)
        self.app = self._serve
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._is_lost = True
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes before a body; a header is known to the parser only when it has come whole.

        Headers behind the end of another request are counted from the next data on: how much of this belongs to which is not told.
        """
        self._has_ended_one = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers and not self._has_ended_one:
            self._num_header_bytes += len(data)
            self._check_size()
        elif self._is_idle and self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_headers, self._num_header_bytes = True, 0
        if not self.transport.is_closing():
            self._disarm()
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def on_headers_complete(self) -> None:
        """Lets a request through whose headers are not too large."""
        self._in_headers = False
        self._disarm()
        self._num_header_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._check_size():
            super().on_headers_complete()
            self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """Nothing of a request that was refused."""
        if self.cycle is not None and not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Nothing of a request that was refused."""
        self._has_ended_one = True
        if self.cycle is not None and not self.transport.is_closing():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer has been written, not always sent."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._limit_flush()

    def timeout_keep_alive_handler(self) -> None:
        """Closes a connection without a next request."""
        super().timeout_keep_alive_handler()
        self._limit_flush()

    def pause_writing(self) -> None:
        """A client is slow: from now on, each message waits until all before it has been sent."""
        super().pause_writing()
        self.transport.set_write_buffer_limits(high=0)

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser cannot read in the shape of all errors, unless it has been refused already."""
        self._refuse(Refusal(400, "this is not a request of HTTP/1.1", "malformed_http"), "Bad Request")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app; an answer that it leaves unfinished ends the connection, whatever its client has not read."""
        cycle: RequestResponseCycle = scope.pop(CYCLE)
        try:
            await self.config.loaded_app(scope, receive, send)
        finally:
            if cycle.response_started and not cycle.response_complete:
                cycle.disconnected = True  # uvicorn takes it as what it is, not as a fault of the app
                self._abort()

    def _abort(self) -> None:
        """Gives back the socket and its buffers at once; closing would wait for a client that may never read."""
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self._is_lost:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_ONCE)
        self.transport.abort()

    def _limit_flush(self) -> None:
        """Bounds how long a connection that is being closed waits for its client to read the rest."""
        if self.transport.get_write_buffer_size():
            self._disarm()
            self._timer = self.loop.call_later(UNSENT_S, self._abort)

    def _check_size(self) -> bool:
        if self._num_header_bytes <= self.max_header_bytes:
            return True
        message = f"the request line and headers are larger than the {self.max_header_bytes} bytes allowed here"
        self._refuse(Refusal(431, message, "headers_too_large"), "Request Header Fields Too Large")
        return False

    @property
    def _is_idle(self) -> bool:
        """Whether nobody waits for anything but what is left of a body that nobody reads, or has come between two requests.

        uvicorn gives up its own timer at the first byte, and does not take it up again.
        """
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and not self._in_headers and self.timeout_keep_alive_task is None

    def _too_slow(self) -> None:
        if (
            self.cycle is not None and not self.cycle.response_complete
        ):  # the request before it still has the connection
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)
            return
        self._timer = None
        if self._is_idle:
            self.transport.close()
            self._limit_flush()
            return
        message = f"the headers did not arrive within {self.header_timeout_s:g} s"
        self._refuse(Refusal(408, message, "header_timeout"), "Request Timeout")

    def _refuse(self, refusal: Refusal, reason: str) -> None:
        """Answers, unless an earlier request is still being answered on this connection, and closes it."""
        if not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_answer(refusal, reason))
            self.transport.close()
            self._limit_flush()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_protocol(max_header_bytes: int, header_timeout_s: float) -> type[LimitedProtocol]:
    """The protocol that uvicorn is to speak, with its limits."""
    limits = {"max_header_bytes": max_header_bytes, "header_timeout_s": header_timeout_s}
    return type("LimitedProtocol", (LimitedProtocol,), limits)
