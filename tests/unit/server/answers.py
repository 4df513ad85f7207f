"""What an engine answers, and what a test does with it."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.unit.server.conftest import Running

CHAT = "/v1/chat/completions"
RECORD = {"speculative_decoding": {"num_spec_steps": 5, "num_draft_tokens": 15, "num_accepted_draft_tokens": 6}}
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
ONE = b'data: {"choices":[{"index":0,"delta":{"content":"caf\xc3\xa9"}}]}\n\n'
TWO = b'data: {"choices":[{"index":0,"delta":{"content":"\\"usage\\""}}]}\n\n'
KEEP_ALIVE = b": keep-alive\n\n"
USAGE = (
    b"data: %s\n\n"
    % json.dumps({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 12}, "metrics": RECORD}).encode()
)
DONE = b"data: [DONE]\n\n"
BODY = json.dumps({"choices": [{}], "usage": {"prompt_tokens": 4, "completion_tokens": 12}, "metrics": RECORD}).encode()


def pieces_of(stream: bytes, size: int) -> list[bytes]:
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def error_of(body: bytes) -> dict[str, str]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def half_request(running: Running, body: dict, path: str = CHAT) -> asyncio.StreamWriter:
    """Sends a request on a raw socket; the caller hangs up."""
    raw = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await writer.drain()
    return writer


@contextmanager
def unread_request(port: int, body: dict, headers: str = "") -> Iterator[socket.socket]:
    """Sends a request on a socket of which nothing is read, and whose own buffer is small."""
    raw = json.dumps(body).encode()
    typed = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n{headers}"
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{typed}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        client.connect(("127.0.0.1", port))
        client.sendall(head.encode() + raw)
        client.setblocking(False)
        yield client


def is_reset(client: socket.socket) -> bool:
    """Whether the other side has given the connection up; asked once, because the answer is forgotten."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


async def answer_in_full(client: socket.socket, begun: bytes = b"") -> bytes:
    """Reads a body with a length, a little at a time, after what has been read already."""
    loop, data = asyncio.get_running_loop(), bytearray(begun)
    while b"\r\n\r\n" not in data:
        data += await loop.sock_recv(client, 4096)
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    length = next(int(row[15:]) for row in head.lower().splitlines() if row.startswith(b"content-length:"))
    received = bytearray(body)
    while len(received) < length and (piece := await loop.sock_recv(client, 16384)):
        received += piece
    return bytes(received)
