"""The client: one raw connection for each request, so that every byte and every close is seen when it happens."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.gateway_load import dechunked, is_whole
from benchmarks.gateway_streamer import MODEL
from benchmarks.promises.upstream import Script

TIMEOUT_S = 60.0
"""No request takes longer."""
CHAT = "/v1/chat/completions"
REFUSED = 503


@dataclass(frozen=True)
class Request:
    """One request for a completion."""

    script: Script
    stream: bool = True
    key: str = ""
    max_tokens: int = 512

    def payload(self) -> dict[str, Any]:
        """Its body."""
        message = {"role": "user", "content": "Say something that takes a while."}
        asked: dict[str, Any] = {"model": MODEL, "messages": [message], "max_tokens": self.max_tokens}
        return {**asked, "stream": self.stream, **self.script.fields()}

    def data(self) -> bytes:
        """Its bytes."""
        return post(CHAT, json.dumps(self.payload()).encode(), self.key)


def post(path: str, body: bytes, key: str = "") -> bytes:
    """The bytes of any request with a body."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{authorization}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str, key: str = "") -> bytes:
    """The bytes of a request without one."""
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{authorization}\r\n".encode()


@dataclass
class Answer:
    """What came back. Times in seconds from the call on."""

    sent_s: float
    """Reading of `time.monotonic`."""
    data: bytes = b""
    ttfb_s: float | None = None
    """To the first byte of the body."""
    e2e_s: float = 0.0
    error: str = ""
    """What broke, below HTTP."""
    refused_connection: bool = False

    @property
    def head(self) -> bytes:
        """Status line and headers, in small letters; empty until they have come whole."""
        head, end, _ = self.data.partition(b"\r\n\r\n")
        return head.lower() if end else b""

    @property
    def body(self) -> bytes:
        """Without the encoding in chunks."""
        body = self.data.partition(b"\r\n\r\n")[2]
        return dechunked(body) if b"transfer-encoding: chunked" in self.head and is_whole(self.head, body) else body

    @property
    def status(self) -> int:
        """0: there was no answer."""
        return int(self.head[9:12]) if self.head else 0

    @property
    def complete(self) -> bool:
        """Whether it ended as HTTP says it must."""
        return is_whole(self.head, self.data.partition(b"\r\n\r\n")[2])

    def fulfils(self, request: Request) -> bool:
        """Whether the request was answered, with every token."""
        if self.status != 200 or not self.complete:
            return False
        if not request.stream:
            return bool(json.loads(self.body)["usage"]["completion_tokens"] == request.script.chunks)
        body = self.body
        return body.count(b'data: {"id"') == request.script.chunks and body.endswith(b"data: [DONE]\n\n")

    @property
    def refused(self) -> bool:
        """Whether it was refused as it should be: 429 or 503, and when to come back."""
        return self.status in (429, REFUSED) and self.complete and b"\r\nretry-after: " in self.head

    @property
    def told(self) -> str:
        """In words, for what should not have happened."""
        return self.error or f"{self.status or 'no answer'} {self.data[-200:]!r}"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection; the block's end closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, begun: Callable[[], object] = bool
) -> Answer:
    """Sends a request on a connection and reads its answer to the end, or to the connection's end.

    Args:
        reader: of the connection.
        writer: of the connection.
        data: the request.
        begun: called when the first byte of the body has come.
    """
    answer, received, head_end = Answer(time.monotonic()), bytearray(), -1
    try:
        writer.write(data)
        while not answer.complete and (piece := await reader.read(2**16)):
            received += piece
            head_end = received.find(b"\r\n\r\n") if head_end < 0 else head_end
            if answer.ttfb_s is None and 0 <= head_end < len(received) - 4:
                answer.ttfb_s = time.monotonic() - answer.sent_s
                begun()
            answer.data = bytes(received)
    except OSError as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.e2e_s = time.monotonic() - answer.sent_s
    return answer


async def ask(port: int, data: bytes) -> Answer:
    """Sends a request on a connection of its own; errors are in the answer."""
    sent_s = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT_S), connected(port) as (reader, writer):
            answer = await exchange(reader, writer, data)
    except (OSError, TimeoutError) as error:
        return Answer(
            sent_s,
            error=f"{type(error).__name__}: {error}",
            refused_connection=isinstance(error, ConnectionRefusedError),
        )
    if answer.ttfb_s is not None:
        answer.ttfb_s += answer.sent_s - sent_s
    return replace(answer, sent_s=sent_s, e2e_s=time.monotonic() - sent_s)


def hang_up(writer: asyncio.StreamWriter, hard: bool) -> None:
    """Closes a connection; hard: with a reset, as the end of a process can."""
    if hard:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
