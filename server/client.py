"""The client's side of a request, in plain ASGI: reading the body, noticing that the client left, answering.

A known limit: uvicorn stops reading from a client that has sent its next request already (pipelining), so that such a
client has left is noticed only when its answer can no longer be written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from server.errors import Refusal, error_body, error_event, error_headers
from server.sse import END_OF_EVENT

Result = TypeVar("Result")

SWALLOWED = 4
"""How many times the largest allowed body is read and thrown away, so that the client gets to read its 413."""
PIECE_BYTES = 65536
"""What of an answer is written at once: as much as a connection buffers before a write has to wait."""


class ClientGone(Exception):
    """The client closed its connection, or does not read any more."""


class Cut(Exception):
    """The gateway is shutting down and waits no longer."""


def header(scope: Scope, name: bytes) -> str | None:
    """A request header's value, or None."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def check_content_type(scope: Scope) -> None:
    """Refuses bodies that are declared as something else than JSON."""
    declared = header(scope, b"content-type")
    media_type = (declared or "application/json").split(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Refusal(415, "the body must be JSON: send 'Content-Type: application/json'", "unsupported_media_type")


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"the body is larger than the {limit} bytes allowed here", "body_too_large")


async def _collect(receive: Receive, limit: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > SWALLOWED * limit:
            break
    if size > limit:
        raise _too_large(limit)
    return b"".join(chunks)


async def read_body(scope: Scope, receive: Receive, limit: int, timeout_s: float, cut: asyncio.Event) -> bytes:
    """The whole request body.

    Raises:
        Refusal: 413 when it is larger than ``limit`` bytes, 408 when it does not arrive within ``timeout_s``.
        ClientGone: when the client left before the end of it.
        Cut: when ``cut`` was set before the end of it.
    """
    declared = header(scope, b"content-length") or ""
    if declared.isdigit() and int(declared) > SWALLOWED * limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await _unless(_collect(receive, limit), {Cut: cut.wait()})
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {timeout_s:g} s", "body_timeout") from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(receive: Receive, cut: asyncio.Event, work: Coroutine[Any, Any, Result]) -> Result:
    """Carries out ``work``, but cancels it the moment the client leaves, or when ``cut`` is set.

    Raises:
        ClientGone: after ``work`` has been cancelled and its clean-up has run.
        Cut: likewise.
    """
    return await _unless(work, {ClientGone: _until_gone(receive), Cut: cut.wait()})


async def _unless(
    work: Coroutine[Any, Any, Result], ends: Mapping[type[Exception], Coroutine[Any, Any, object]]
) -> Result:
    """Carries out ``work``, but cancels it the moment one of ``ends`` comes, and raises what that stands for."""
    working = asyncio.ensure_future(work)
    ending = {asyncio.ensure_future(end): error for error, end in ends.items()}
    tasks = (working, *ending)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise next(error for task, error in ending.items() if task.done())
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Reply:
    """The answer to the client; knows whether it has begun, which decides how an error can still be told."""

    def __init__(self, send: Send, stall_s: float):
        self.started = False
        self.headers: Callable[[], Mapping[str, str]] = dict
        """Gives what goes out with every answer, whatever it is."""
        self._send = send
        self._stall_s = stall_s
        self._in_one_piece = False
        self._last = b""

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends the status line and headers."""
        self.started = True
        every = {**headers, **self.headers()}
        raw = [(key.encode("latin-1"), value.encode("latin-1")) for key, value in every.items()]
        await self._pass({"type": "http.response.start", "status": status, "headers": raw})

    async def begin(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        """Sends the status line, headers and the first piece of the body."""
        await self.start(status, headers)
        await self.write(data)

    async def write(self, data: bytes) -> None:
        """Sends a piece of the body; waits while the client is slow to read."""
        self._last = data[-4:]
        await self._pass({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Sends the last piece of the body."""
        await self._pass({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends an answer in one piece; a large one keeps its caller until the client has taken nearly all of it.

        uvicorn waits for a slow client before it writes, never after, so the end is a message of its own.
        """
        self._in_one_piece = True
        await self.start(status, {**headers, "content-length": str(len(body))})
        if len(body) > PIECE_BYTES:
            for begin in range(0, len(body), PIECE_BYTES):
                await self.write(body[begin : begin + PIECE_BYTES])
            body = b""
        await self.end(body)

    async def refuse(self, refusal: Refusal) -> None:
        """Tells of an error: as a response while that is possible, and as an event of the stream afterwards.

        An answer in one piece has no room for it: it stays short of its length, and its connection is ended.
        """
        if self.started:
            between = not self._last or any(END_OF_EVENT.fullmatch(self._last[-size:]) for size in (2, 3, 4))
            said = error_event(refusal) if between else b"\n\n" + error_event(refusal)  # not into an event that was cut
            return None if self._in_one_piece else await self.end(said)
        headers = {"content-type": "application/json", **error_headers(refusal)}
        if refusal.status in (408, 413):
            headers["connection"] = "close"  # the rest of the body is still on its way
        return await self.whole(refusal.status, headers, error_body(refusal))

    async def _pass(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send(message)
        except TimeoutError:
            raise ClientGone from None
