"""The client of `make bench-gateway`: raw sockets, kept alive, one request after the other on each.

Run as a process of its own: ``python -m benchmarks.gateway_load`` reads a Load as JSON on standard input and prints a Result.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Load:
    """What to ask.

    Attributes:
        rate: requests a second over all connections, evenly spaced; 0 is as soon as the connection's last one is answered. Where
            all connections are busy a request waits for one, and its times count from when it is sent.
    """

    port: int
    stream: bool
    connections: int
    requests: int
    key: str = ""
    model: str = "bench"
    rate: float = 0.0

    def request(self) -> bytes:
        """The bytes of one request."""
        message = {"role": "user", "content": "Say something that takes a while. " * 4}
        asked: dict[str, object] = {"model": self.model, "messages": [message], "max_tokens": 512}
        body = json.dumps(asked | ({"stream": True} if self.stream else {})).encode()
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{key}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Result:
    """What came of it."""

    ttfb_s: list[float] = field(default_factory=list)
    """From the request to the first byte of the body."""
    e2e_s: list[float] = field(default_factory=list)
    events: int = 0
    """Events of streams that hold JSON."""
    wall_s: float = 0.0
    errors: list[str] = field(default_factory=list)


def dechunked(body: bytes) -> bytes:
    """A body without its chunked encoding."""
    parts, at = [], 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size


def is_whole(head: bytes, body: bytes) -> bool:
    """Whether an answer has come to its end."""
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line[15:])
    return False


class Connection(asyncio.Protocol):
    """Asks and takes the times."""

    def __init__(self, load: Load, result: Result):
        self._request, self._stream, self._result = load.request(), load.stream, result
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._received = bytearray()
        self._head_end = -1
        self._sent_s = 0.0
        self._first_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the request that is under way."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(ConnectionError("connection closed in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        """Takes the time of the first byte of a body, and notices its end."""
        self._received += data
        if self._head_end < 0:
            self._head_end = self._received.find(b"\r\n\r\n")
        if self._head_end < 0 or len(self._received) <= self._head_end + 4:
            return
        if self._first_s is None:
            self._first_s = time.perf_counter()
        if self._waiter is not None and not self._waiter.done() and self._ended():
            self._waiter.set_result(None)

    def _ended(self) -> bool:
        if self._stream and not self._received.endswith(b"0\r\n\r\n"):
            return False
        return is_whole(bytes(self._received[: self._head_end]).lower(), bytes(self._received[self._head_end + 4 :]))

    async def ask(self) -> None:
        """One request, and its answer judged."""
        assert self._transport is not None
        self._received.clear()
        self._head_end, self._first_s = -1, None
        self._waiter = asyncio.get_running_loop().create_future()
        self._sent_s = time.perf_counter()
        self._transport.write(self._request)
        async with asyncio.timeout(TIMEOUT_S):
            await self._waiter
        self._note(time.perf_counter())

    def _note(self, ended_s: float) -> None:
        head, body = bytes(self._received[: self._head_end]), bytes(self._received[self._head_end + 4 :])
        if not head.startswith(b"HTTP/1.1 200"):
            self._result.errors.append(f"{head[:40]!r} {body[:200]!r}")
            return
        if self._stream:
            text = dechunked(body)
            if text.count(b"data: [DONE]") != 1:
                self._result.errors.append("a stream without its last event")
            self._result.events += text.count(b"data: {")
        assert self._first_s is not None
        self._result.ttfb_s.append(self._first_s - self._sent_s)
        self._result.e2e_s.append(ended_s - self._sent_s)


async def run(load: Load) -> Result:
    """Carries a load out."""
    result, left = Result(), iter(range(load.requests))
    loop = asyncio.get_running_loop()

    async def work(connection: Connection) -> None:
        for number in left:
            if load.rate:
                await asyncio.sleep(max(0.0, started + number / load.rate - time.perf_counter()))
            await connection.ask()

    async def connect() -> Connection:
        _, connection = await loop.create_connection(lambda: Connection(load, result), "127.0.0.1", load.port)
        return connection

    connections = await asyncio.gather(*(connect() for _ in range(load.connections)))
    started = time.perf_counter()
    done = await asyncio.gather(*map(work, connections), return_exceptions=True)
    result.wall_s = time.perf_counter() - started
    result.errors += [f"{type(error).__name__}: {error}" for error in done if error is not None]
    return result


def main() -> None:
    """Load in, result out."""
    load = Load(**json.loads(sys.stdin.read()))
    print(json.dumps(asdict(asyncio.run(run(load)))))


if __name__ == "__main__":
    main()
