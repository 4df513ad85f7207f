"""An engine of thirty lines: answers every request with given bytes, in given pieces, and notices who hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

HOLD = b""
"""In a list of pieces: send nothing more until the connection is closed."""
CUT = b"cut"
"""In a list of pieces: close the connection."""


def chunked(pieces: Iterable[bytes], content_type: str = "text/event-stream", end: bool = True) -> list[bytes]:
    """A 200 answer in chunked encoding, one network piece each; without ``end`` it is cut."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = [piece and b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    return [head.encode(), *body, b"0\r\n\r\n" if end else CUT]


def whole(body: bytes, status: int = 200, content_type: str = "application/json", headers: str = "") -> list[bytes]:
    """An answer with a length."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return [head.encode() + body]


@dataclass
class Replay:
    """What the engine answers, and what it saw."""

    pieces: list[bytes] = field(default_factory=list)
    requests: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    """Request line, headers, body."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    silent: bool = False
    """Whether probes get no answer."""
    _asked: set[asyncio.StreamWriter] = field(default_factory=set)
    """Connections on which more than probes came."""
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    def pieces_for(self, body: bytes) -> list[bytes]:
        """What a request is answered with."""
        return self.pieces

    async def kill(self) -> None:
        """Ends it as a process ends: nobody listens, and every connection breaks."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                await self._one(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            if writer in self._asked:
                self.hung_up.set()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, headers = head.partition(b"\r\n")
        length = next((int(row[15:]) for row in headers.lower().splitlines() if row.startswith(b"content-length:")), 0)
        if line.startswith(b"GET /health"):
            if self.silent:
                await reader.readexactly(1)
            writer.write(whole(b"")[0])
            return
        self._asked.add(writer)
        body = await reader.readexactly(length)
        self.requests.append((line.decode(), headers, body))
        self.arrived.set()
        for piece in self.pieces_for(body):
            if piece == HOLD:
                await reader.readexactly(1)
            if piece == CUT:
                raise ConnectionError
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Replay]:
        """Listens for as long as the block runs; on the same port as before, if it ran before."""
        port = int(self.url.rpartition(":")[2]) if self.url else 0
        server = self._server = await asyncio.start_server(self._answer, "127.0.0.1", port)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
