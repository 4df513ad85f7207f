"""Clients that leave, stop reading, or are cut at the end: over real sockets."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.server.answers import BODY, CHAT, DONE, ONE, USAGE, error_of, half_request
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import HOLD, chunked, whole

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("pieces", "stream"),
    [([HOLD], True), ([HOLD], False), (chunked([ONE, HOLD]), True), ([whole(BODY)[0][:-5], HOLD], False)],
    ids=["before the first byte", "while waiting for an answer in one piece", "mid-stream", "mid-body"],
)
async def test_a_client_that_leaves_takes_its_request_along(
    gateway: Gateway, pieces: list[bytes], stream: bool
) -> None:
    async with gateway(pieces) as running:
        writer = await half_request(running, {"stream": stream, "messages": []})
        await running.engine.arrived.wait()
        assert running.door.running == 1
        assert await running.metric("understudy_requests_in_flight") == 1
        writer.close()
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
        await running.settled()
        assert await running.metric("understudy_requests_total", status="client_gone") == 1
        assert await running.metric("understudy_acceptance_records_missing_total", reason="cancelled") == 1


async def test_a_client_that_leaves_while_sending_never_reaches_the_engine(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        await running.until(lambda: running.door.running == 1)
        writer.close()
        await running.settled()
        assert running.engine.requests == []
        assert await running.metric("understudy_requests_total", status="client_gone") == 1
        assert await running.metric("understudy_acceptance_records_missing_total") == 0


async def test_a_client_that_leaves_with_the_last_event_was_answered(gateway: Gateway) -> None:
    """As the real client does: it closes at ``[DONE]``, before the engine has ended its answer."""
    async with gateway(chunked([ONE + USAGE + DONE, HOLD])) as running:
        async with running.client.post(running.url + CHAT, json={"stream": True}) as response:
            assert await response.content.readexactly(len(ONE + DONE)) == ONE + DONE
            response.close()
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
        await running.settled()
        assert await running.metric("understudy_requests_total", status="200") == 1
        assert await running.metric("understudy_accepted_tokens_total") == 6


async def test_many_that_leave_free_every_place(gateway: Gateway) -> None:
    async with gateway(chunked([ONE, HOLD]), max_in_flight=20) as running:
        for _ in range(3):
            writers = [await half_request(running, {"stream": True}) for _ in range(20)]
            await running.until(lambda: running.door.running == 20)
            for writer in writers:
                writer.close()
            await running.settled()
        assert await running.metric("understudy_requests_total", status="client_gone") == 60


async def test_requests_that_are_cut_at_the_end_are_told_so(gateway: Gateway) -> None:
    async with gateway([HOLD]) as running:
        asking = asyncio.create_task(running.post(CHAT, {"stream": True}))
        await running.engine.arrived.wait()
        running.door.cut.set()
        status, headers, body = await asking
        assert (status, error_of(body)["code"], headers["retry-after"]) == (503, "draining", "1")
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
        await running.settled()


async def test_requests_that_are_cut_while_they_are_sent_are_told_so(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        await running.until(lambda: running.door.running == 1)
        running.door.cut.set()
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b" 503 " in head.splitlines()[0]
        assert b"shutting down" in await reader.readuntil(b"}}")
        writer.close()
        await running.settled()
        assert running.engine.requests == []


async def test_streams_that_are_cut_at_the_end_are_told_so(gateway: Gateway) -> None:
    async with gateway(chunked([ONE, HOLD])) as running:
        async with running.client.post(running.url + CHAT, json={"stream": True}) as response:
            assert await response.content.readexactly(len(ONE)) == ONE
            running.door.cut.set()
            assert b"shutting down" in await response.read()
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)


async def test_a_client_that_stops_reading_is_let_go(gateway: Gateway) -> None:
    flood = b"data: " + b"x" * 60_000 + b"\n\n"
    async with gateway(chunked([flood] * 400), client_stall_s=0.2) as running:
        writer = await half_request(running, {"stream": True})
        await asyncio.wait_for(running.engine.hung_up.wait(), 20)
        await running.settled()
        assert await running.metric("understudy_requests_total", status="client_gone") == 1
        writer.close()


async def test_a_client_that_reads_slowly_holds_back_the_engine(gateway: Gateway) -> None:
    """What it has not read waits in the network's buffers and at the engine, not in the gateway."""
    flood = b"data: " + b"x" * 200_000 + b"\n\n"
    async with gateway(chunked([flood] * 2000)) as running:
        writer = await half_request(running, {"stream": True})
        await running.engine.arrived.wait()
        sent = -1
        while sent != running.engine.sent:
            sent = running.engine.sent
            await asyncio.sleep(0.3)
        assert 0 < sent < 100_000_000
        assert running.door.running == 1
        writer.close()
        await running.settled()
