"""Headers that are too large or too slow, over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.server.answers import BODY, error_of
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import whole

pytestmark = pytest.mark.anyio

HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n"


async def answer_to(running: Running, sent: bytes) -> bytes:
    """All that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [HEAD + b"A: " + b"x" * 2000 + b"\r\n\r\n", HEAD + b"A: " + b"x" * 2000, HEAD + b"A: b\r\n" * 1000,
     b"GET /" + b"x" * 2000, b"GET /" + b"x" * 2000 + b" HTTP/1.1\r\n\r\n"],
)  # fmt: skip
async def test_headers_that_are_too_large(gateway: Gateway, sent: bytes) -> None:
    async with gateway(whole(BODY), max_header_bytes=1024) as running:
        told = await answer_to(running, sent)
        assert told.startswith(b"HTTP/1.1 431 ")
        assert b"headers_too_large" in told


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD])
async def test_headers_that_do_not_come(gateway: Gateway, sent: bytes) -> None:
    async with gateway(whole(BODY), header_timeout_s=0.1, usage_details=False) as running:
        assert (await answer_to(running, sent)).startswith(b"HTTP/1.1 408 ")


async def test_a_slow_body_or_answer_is_not_a_slow_header(gateway: Gateway) -> None:
    async with gateway(whole(BODY), header_timeout_s=0.1, usage_details=False) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for _ in range(2):  # the connection is used again
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            await asyncio.sleep(0.3)
            writer.write(b"}")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert b" 200 " in head.splitlines()[0]
            assert await reader.readexactly(len(BODY)) == BODY
        writer.close()


REFUSED = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize(("sent", "late"), [(REFUSED, b"x"), (HEAD + b"\r\n", b"\r\n")], ids=["a body", "between two"])
async def test_what_comes_after_an_answer_keeps_no_connection_open(gateway: Gateway, sent: bytes, late: bytes) -> None:
    async with gateway(whole(BODY), header_timeout_s=0.2, usage_details=False) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(sent)
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        await running.settled()
        writer.write(late)
        rest = await asyncio.wait_for(reader.read(), 10)
        assert b"HTTP/1.1" not in rest, "it is closed without another word"
        writer.close()


async def test_the_rest_of_a_refused_body_may_come_in_its_time(gateway: Gateway) -> None:
    async with gateway(whole(BODY), usage_details=False) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(REFUSED)
        assert b" 415 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        await running.settled()
        for piece in (b"1234", b"56789", HEAD + b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.05)
        assert b"HTTP/1.1 200 " in await asyncio.wait_for(reader.readuntil(b"alive"), 10)
        writer.close()


async def test_a_body_before_them_does_not_count_as_headers(gateway: Gateway) -> None:
    body = b'{"prompt": "%s"}' % (b"x" * 4000)
    async with gateway(whole(BODY), max_header_bytes=1024, usage_details=False) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body + HEAD
        )
        await asyncio.sleep(0.1)
        writer.write(b"\r\n")
        for end in (BODY, b"alive"):
            assert b"HTTP/1.1 200 " in await asyncio.wait_for(reader.readuntil(end), 10)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n",
     b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n\r\nhello\r\n\r\n", HEAD + b"Content-Length: x\r\n\r\n"],
)  # fmt: skip
async def test_what_is_not_http_is_told_so_in_the_shape_of_all_errors(gateway: Gateway, sent: bytes) -> None:
    async with gateway(whole(BODY)) as running:
        head, _, body = (await answer_to(running, sent)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 Bad Request")
        assert error_of(body)["code"] == "malformed_http"
