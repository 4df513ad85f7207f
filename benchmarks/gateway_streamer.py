"""The engine's stand-in of `make bench-gateway`: answers every OpenAI request with the same bytes, as cheaply as Python can.

Run as a process of its own: ``python -m benchmarks.gateway_streamer``; the port is printed. From
``GET /bench/plan?chunks=128&gap_us=500`` on, streams look like that.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

MODEL = "bench"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
COMMON = {"id": "chatcmpl-0123456789abcdef", "created": 1_700_000_000, "model": MODEL}
RECORD = {"num_spec_steps": 64, "num_draft_tokens": 256, "num_accepted_draft_tokens": 64, "num_spec_tokens": 4}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(choices: list[dict], **more: object) -> bytes:
    return _piece(
        b"data: " + _json({**COMMON, "object": "chat.completion.chunk", "choices": choices, **more}) + b"\n\n"
    )


def usage(tokens: int) -> dict:
    """Token counts of one answer."""
    return {"prompt_tokens": 16, "completion_tokens": tokens, "total_tokens": 16 + tokens}


@dataclass
class Plan:
    """What is answered: bytes made once."""

    chunks: int = 128
    gap_s: float = 0.0
    """Pause before each chunk; without one they are written one after the other."""
    wait_s: float = 0.0
    """Pause before the first byte."""
    tokens: int = 64
    """Of an answer in one piece."""
    head: bytes = field(init=False)
    pieces: list[bytes] = field(init=False)
    usage_piece: bytes = field(init=False)
    tail: bytes = field(init=False)
    whole: bytes = field(init=False)
    models: bytes = field(init=False)

    def __post_init__(self) -> None:
        delta = {"index": 0, "delta": {"content": " token"}, "logprobs": None, "finish_reason": None}
        role = {**delta, "delta": {"role": "assistant", "content": ""}}
        last = {**delta, "delta": {"content": ""}, "finish_reason": "stop"}
        metrics = {"speculative_decoding": RECORD}
        self.head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self.pieces = [_event([role]), *[_event([delta])] * (self.chunks - 2), _event([last])]
        self.usage_piece = _event([], usage=usage(self.chunks), metrics=metrics)
        self.tail = _piece(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        message = {"role": "assistant", "content": " token" * self.tokens}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        told = {"usage": usage(self.tokens), "metrics": metrics}
        answer = {**COMMON, "object": "chat.completion", "choices": [choice], **told}
        self.whole = answered(_json(answer))
        self.models = answered(
            _json({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]})
        )


def answered(body: bytes, status: str = "200 OK") -> bytes:
    """A whole answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Streamer(asyncio.Protocol):
    """One connection; requests on it are answered in turn."""

    plan = Plan()

    def __init__(self) -> None:
        self.num_sent = 0
        """Pieces of the current stream that have been written."""
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops writing."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answers each request once its body is there."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._buffer, 0, end)
            size = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < size:
                return
            head, body = bytes(self._buffer[:end]), bytes(self._buffer[end + 4 : size])
            del self._buffer[:size]
            self._answer(head.split(b" ", 2)[1].decode(), body)

    def _answer(self, target: str, body: bytes) -> None:
        assert self._transport is not None
        plan = type(self).plan
        parts = urlsplit(target)
        if parts.path == "/bench/plan":
            asked = parse_qs(parts.query)
            type(self).plan = Plan(int(asked["chunks"][0]), int(asked["gap_us"][0]) / 1e6)
            self._transport.write(answered(b"{}"))
        elif parts.path.endswith("/completions"):
            self.complete(body)
        elif parts.path == "/v1/models":
            self._transport.write(plan.models)
        elif parts.path == "/health":
            self._transport.write(answered(b"{}"))
        else:
            self._transport.write(answered(b'{"error":{"message":"no such route"}}', "404 Not Found"))

    def complete(self, body: bytes) -> None:
        """Answers a request for a completion."""
        self.replay(type(self).plan, body)

    def replay(self, plan: Plan, body: bytes) -> None:
        """Answers as planned."""
        if plan.wait_s:
            self._timer = asyncio.get_running_loop().call_later(plan.wait_s, self._begin, plan, body)
        else:
            self._begin(plan, body)

    def ended(self) -> None:
        """Called when an answer has been written to its end."""

    def _begin(self, plan: Plan, body: bytes) -> None:
        assert self._transport is not None
        compact = body.replace(b" ", b"")
        if b'"stream":true' in compact:
            usage_wanted = b'"include_usage":true' in compact
            self._transport.write(plan.head)
            self._go_on(plan, [*plan.pieces, *[plan.usage_piece] * usage_wanted, plan.tail], 0)
        else:
            self._transport.write(plan.whole)
            self.ended()

    def _go_on(self, plan: Plan, pieces: list[bytes], at: int) -> None:
        assert self._transport is not None
        if not plan.gap_s:
            for piece in pieces:
                self._transport.write(piece)
            self.ended()
            return
        self._transport.write(pieces[at])
        self.num_sent = at + 1
        if at + 1 < len(pieces):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(plan.gap_s, self._go_on, plan, pieces, at + 1)
        else:
            self.ended()


async def serve(protocol: Callable[[], asyncio.BaseProtocol], port: int = 0) -> None:
    """Serves on a port that is printed (0: a free one), until whoever started this process closes its standard input."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


def main() -> None:
    """Serves until standard input is closed."""
    asyncio.run(serve(Streamer))


if __name__ == "__main__":
    main()
