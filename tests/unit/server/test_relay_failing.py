"""Engines that fail: every failure is told in OpenAI's shape and counted."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.server.answers import CHAT, DONE, ONE, error_of
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import CUT, HOLD, chunked, whole

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("cut", [b"", b'data: {"choi'], ids=["between events", "inside an event"])
async def test_a_stream_that_breaks_off_ends_with_an_error(gateway: Gateway, cut: bytes) -> None:
    pieces = [ONE, cut] if cut else [ONE]
    async with gateway(chunked(pieces, end=False)) as running:
        status, _, body = await running.post(CHAT, {"stream": True})
        assert status == 200
        assert body.startswith(ONE + b'data: {"error"')
        assert body.endswith(DONE)
        assert error_of(body.removeprefix(ONE).split(b"\n\n")[0][6:])["type"] == "server_error"
        await running.settled()
        assert await running.metric("understudy_requests_total", status="stream_failed") == 1
        assert await running.metric("understudy_acceptance_records_missing_total", reason="failed") == 1


async def test_a_stream_without_its_last_event_is_a_failure_too(gateway: Gateway) -> None:
    async with gateway(chunked([ONE])) as running:
        assert b'"error"' in (await running.post(CHAT, {"stream": True}))[2]


async def test_an_error_that_the_engine_tells_in_the_stream_passes_and_is_counted(gateway: Gateway) -> None:
    stream = ONE + b'data: {"error": {"message": "no"}}\n\n' + DONE
    async with gateway(chunked([stream])) as running:
        assert (await running.post(CHAT, {"stream": True}))[2] == stream
        await running.settled()
        assert await running.metric("understudy_requests_total", status="stream_failed") == 1


@pytest.mark.parametrize(("code", "status"), [(400, 400), (404, 404), (500, 502), ('"x"', 502)])
async def test_an_error_at_the_begin_of_a_stream_becomes_the_status(
    gateway: Gateway, code: object, status: int
) -> None:
    error = f'data: {{"error": {{"message": "no", "param": "logprobs", "code": {code}}}}}\n\n'.encode()
    async with gateway(chunked([error, DONE])) as running:
        found, _, body = await running.post(CHAT, {"stream": True})
        assert (found, error_of(body)["param"]) == (status, "logprobs")
        await running.settled()
        assert await running.metric("understudy_requests_total", status=str(status)) == 1


async def test_without_an_engine_it_is_503_with_a_time_to_come_back(gateway: Gateway) -> None:
    async with gateway([HOLD], engine_url="http://127.0.0.1:1") as running:
        status, headers, body = await running.post(CHAT, {"messages": []})
        assert (status, error_of(body)["code"]) == (503, "engine_unreachable")
        assert headers["retry-after"] == "1"
        for path in ("/v1/models", "/ready"):
            async with running.client.get(running.url + path) as response:
                assert response.status == 503
                assert response.headers["retry-after"]
        async with running.client.get(running.url + "/health") as response:
            assert response.status == 200


@pytest.mark.parametrize(
    ("pieces", "status", "code"),
    [([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12", CUT], 503, "engine_failed"), ([CUT], 503, "engine_failed"),
     ([b"nonsense\r\n\r\n"], 502, "engine_failed"),
     (whole(b"oops", 500), 502, "engine_failed"), (whole(b'{"detail":"Not Found"}', 404), 404, "not_supported"),
     (whole(b'{"error":{"message":"bad key"}}', 401), 502, "engine_refused_gateway"),
     (whole(b"", 302), 502, "engine_failed"),
     (whole(b"", 503), 503, "engine_busy"), (whole(b"", 422), 422, "engine_refused")],
)  # fmt: skip
async def test_engine_failures_are_told_in_openais_shape(
    gateway: Gateway, pieces: list[bytes], status: int, code: str
) -> None:
    async with gateway(pieces) as running:
        found, headers, body = await running.post(CHAT, {"messages": []})
        assert (found, error_of(body)["code"]) == (status, code)
        assert ("retry-after" in headers) == (status == 503)


async def test_the_engines_own_errors_pass_unchanged(gateway: Gateway) -> None:
    body = b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}'
    async with gateway(whole(body, 400)) as running:
        assert (await running.post(CHAT, {"messages": []}))[::2] == (400, body)
        await running.settled()
        assert await running.metric("understudy_acceptance_records_missing_total") == 0


async def test_a_silent_engine_is_504(gateway: Gateway) -> None:
    async with gateway([HOLD], engine_silence_s=0.1) as running:
        status, _, body = await running.post(CHAT, {"messages": []})
        assert (status, error_of(body)["code"]) == (504, "engine_timeout")
        await running.engine.hung_up.wait()


async def test_a_silent_engine_is_soon_given_up_when_asked_for_its_models(gateway: Gateway) -> None:
    async with gateway([HOLD], ready_timeout_s=0.1) as running:
        async with asyncio.timeout(10), running.client.get(running.url + "/v1/models") as response:
            assert (response.status, error_of(await response.read())["code"]) == (504, "engine_timeout")
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
