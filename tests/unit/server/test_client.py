"""Clients that do not read what they asked for: what they hold, how long, and what is left of them; over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.responses import Response

from server import http_limits
from server.client import PIECE_BYTES, Reply
from server.errors import Refusal, error_event
from tests.unit.server.answers import BODY, answer_in_full, is_reset, unread_request
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import chunked, whole

pytestmark = pytest.mark.anyio

LARGE = b'{"choices": [{"text": "' + b"x" * 16_000_000 + b'"}]}'
FLOOD = b"data: " + b"x" * 60_000 + b"\n\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: each has transports of its own."""
    return "asyncio", {"use_uvloop": request.param}


async def test_an_answer_in_one_piece_keeps_its_place_until_it_is_read(gateway: Gateway) -> None:
    """Little of it lies in the gateway's buffer, and nothing of it is lost."""
    async with gateway(whole(LARGE)) as running:
        with unread_request(running.port, {}) as client:
            await running.until(lambda: any(running.unsent))
            await asyncio.sleep(0.3)
            assert max(running.unsent) <= 2 * PIECE_BYTES
            assert running.door.running == 1
            assert await asyncio.wait_for(answer_in_full(client), 60) == LARGE
        await running.settled()
        assert await running.metric("understudy_requests_total", status="200") == 1


@pytest.mark.parametrize(
    ("pieces", "stream"),
    [(whole(LARGE), False), (chunked([FLOOD] * 400), True)],
    ids=["in one piece", "stream"],
)
async def test_a_client_that_never_reads_loses_its_place_and_its_socket(
    gateway: Gateway, pieces: list[bytes], stream: bool
) -> None:
    async with gateway(pieces, client_stall_s=0.2) as running:
        with unread_request(running.port, {"stream": stream}) as client:
            await running.engine.arrived.wait()
            await running.until(lambda: is_reset(client))
            await running.settled()
            await running.until(lambda: not any(running.unsent))
        assert await running.metric("understudy_requests_total", status="client_gone") == 1


async def test_an_answer_in_one_piece_that_is_cut_ends_short_without_an_event(gateway: Gateway) -> None:
    async with gateway(whole(LARGE)) as running:
        with unread_request(running.port, {}) as client:
            await running.until(lambda: any(running.unsent))
            running.door.cut.set()
            await running.until(lambda: is_reset(client))
        await running.settled()
        assert await running.metric("understudy_requests_total", status="stream_failed") == 1


@pytest.mark.parametrize("headers", ["", "Connection: close\r\n"], ids=["kept alive", "closed"])
async def test_what_is_left_of_a_finished_answer_does_not_stay_for_ever(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, headers: str
) -> None:
    """Such as that of a route that is not relayed, which is written in one go."""
    monkeypatch.setattr(http_limits, "UNSENT_S", 0.2)
    async with gateway(whole(BODY)) as running:
        running.server.config.timeout_keep_alive = 1
        running.server.config.loaded_app = Response(LARGE)
        with unread_request(running.port, {}, headers) as client:
            await running.until(lambda: any(running.unsent))
            await running.until(lambda: is_reset(client))


@pytest.mark.parametrize(
    ("last", "between"),
    [
        (b"", b""),
        (b"data: 1\n\n", b""),
        (b"data: 1\r\n\r\n", b""),
        (b"data: 1\r\r", b""),
        (b'data: {"te', b"\n\n"),
        (b"x\n", b"\n\n"),
    ],
)
async def test_an_error_is_an_event_of_its_own_even_where_one_was_cut(last: bytes, between: bytes) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    reply, refusal = Reply(send, 1.0), Refusal(503, "it ended", "engine_failed")
    await reply.start(200, {})
    if last:
        await reply.write(last)
    await reply.refuse(refusal)
    assert sent[-1] == {"type": "http.response.body", "body": between + error_event(refusal), "more_body": False}
