"""Requests that are refused before they reach the engine."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server import admin, errors
from tests.unit.server.answers import BODY, CHAT, error_of, half_request
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import HOLD, whole

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/chat/completions/", "/v1/files", "/openapi.yaml", "/v1/load_lora_adapter"]
)
async def test_unknown_routes(gateway: Gateway, path: str) -> None:
    async with gateway(whole(BODY)) as running:
        status, _, body = await running.post(path, {})
        assert (status, error_of(body)["code"]) == (404, "unknown_route")
        assert running.engine.requests == []


async def test_an_unknown_route_with_bytes_that_are_no_text(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /nope?\xff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 "), "the parser refuses it"
        assert error_of(body)["code"] == "malformed_http"
        writer.close()
    scope = {"type": "http", "method": "GET", "path": "/nope", "query_string": b"\xff", "headers": []}
    for answer in (errors.on_http_exception, admin._on_http_exception):  # where another parser lets it come so far
        response = await answer(Request(scope), HTTPException(404))
        assert (response.status_code, error_of(bytes(response.body))["code"]) == (404, "unknown_route")


async def test_wrong_method(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running, running.client.get(running.url + CHAT) as response:
        assert response.status == 405
        assert error_of(await response.read())["code"] == "method_not_allowed"


@pytest.mark.parametrize("size", [2000, 4000, 100_000])
async def test_bodies_that_are_too_large(gateway: Gateway, size: int) -> None:
    async with gateway(whole(BODY), max_body_bytes=1024) as running:
        status, _, body = await running.post(CHAT, {"prompt": "x" * size})
        assert (status, error_of(body)["code"]) == (413, "body_too_large")
        assert running.engine.requests == []
        assert running.door.running == 0


async def test_large_bodies_without_a_declared_length(gateway: Gateway) -> None:
    async def flood() -> object:
        for _ in range(3):
            yield b"x" * 1000

    async with gateway(whole(BODY), max_body_bytes=1024) as running:
        declared = {"Content-Type": "application/json"}
        asking = running.client.post(running.url + CHAT, data=flood(), headers=declared)
        async with asking as response:
            assert response.status == 413


async def test_bodies_that_do_not_arrive(gateway: Gateway) -> None:
    async with gateway(whole(BODY), body_timeout_s=0.1) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await reader.readline()
        writer.close()
        await running.settled()


async def test_bodies_that_are_declared_as_something_else(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        declared = {"Content-Type": "application/x-www-form-urlencoded"}
        status, _, body = await running.post(CHAT, b"a=b", headers=declared)
        assert (status, error_of(body)["code"]) == (415, "unsupported_media_type")


async def test_full_house(gateway: Gateway) -> None:
    async with gateway([HOLD], max_in_flight=1, max_queued=0) as running:
        writer = await half_request(running, {"stream": True})
        await running.engine.arrived.wait()
        status, headers, body = await running.post(CHAT, {"messages": []})
        assert (status, error_of(body)["code"]) == (503, "overloaded")
        assert headers["retry-after"]
        assert await running.metric("understudy_refusals_total", reason="overloaded") == 1
        writer.close()
        await running.settled()


async def test_aiohttp_sees_no_error_on_reuse_after_a_refusal(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running, aiohttp.ClientSession() as session:
        for body in (b"{", b'{"prompt":"x"}', b"[]"):
            headers = {"Content-Type": "application/json"}
            async with session.post(running.url + "/v1/completions", data=body, headers=headers) as response:
                assert response.status in (200, 400)
