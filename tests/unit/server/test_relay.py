"""The relay over real sockets, in front of an engine that replays bytes."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from server.stream import only_names_the_role
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import CUT, HOLD, chunked, whole

pytestmark = pytest.mark.anyio

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


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
async def test_bytes_pass_unchanged_but_for_the_chunk_only_we_asked_for(gateway: Gateway, size: int) -> None:
    stream = ONE + KEEP_ALIVE + TWO + USAGE + DONE
    async with gateway(chunked(pieces_of(stream, size))) as running:
        status, headers, body = await running.post(CHAT, {"stream": True, "messages": []})
        assert (status, body) == (200, ONE + KEEP_ALIVE + TWO + DONE)
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert json.loads(running.engine.requests[0][2])["stream_options"] == {"include_usage": True}
        await running.settled()
        assert await running.metric("understudy_draft_tokens_total", route="chat", model="m", draft="d") == 15
        assert await running.metric("understudy_accepted_tokens_total") == 6
        assert await running.metric("understudy_drafts_total") == 5
        assert await running.metric("understudy_acceptance_rate_sum") == 6 / 15
        assert await running.metric("understudy_mean_acceptance_length_sum") == 1 + 6 / 5
        assert await running.metric("understudy_output_tokens_total") == 12
        assert await running.metric("understudy_time_to_first_token_seconds_count") == 1
        assert await running.metric("understudy_time_per_output_token_seconds_count") == 1
        assert await running.metric("understudy_chunk_gap_seconds_count") == 1
        assert await running.metric("understudy_requests_total", status="200") == 1
        assert await running.metric("understudy_acceptance_records_missing_total") == 0


@pytest.mark.parametrize("pieces", [[ROLE + ONE, TWO + USAGE + DONE], [ROLE, ONE, TWO, USAGE + DONE]])
async def test_the_chunk_that_only_names_the_role_is_no_content(gateway: Gateway, pieces: list[bytes]) -> None:
    async with gateway(chunked(pieces)) as running:
        assert (await running.post(CHAT, {"stream": True}))[2] == ROLE + ONE + TWO + DONE
        await running.settled()
        assert await running.metric("understudy_time_to_first_token_seconds_count") == 1
        assert await running.metric("understudy_chunk_gap_seconds_count") == 1


@pytest.mark.parametrize(
    ("choice", "opens"),
    [({"delta": {"role": "assistant", "content": ""}}, True), ({"delta": {"role": "assistant"}}, True),
     ({"delta": {"role": "assistant", "content": "a"}}, False), ({"delta": {"tool_calls": [{}]}}, False),
     ({"delta": {"content": ""}, "finish_reason": "stop"}, False), ({"text": ""}, False), (3, False)],
)  # fmt: skip
def test_which_chunk_only_names_the_role(choice: object, opens: bool) -> None:
    assert only_names_the_role({"choices": [choice]}) is opens
    assert not only_names_the_role({"choices": []})
    assert not only_names_the_role(None)


async def test_a_client_that_asked_for_usage_gets_it(gateway: Gateway) -> None:
    stream = ONE + USAGE + DONE
    async with gateway(chunked([stream])) as running:
        asked = {"stream": True, "messages": [], "stream_options": {"include_usage": True}}
        assert (await running.post(CHAT, asked))[2] == stream


async def test_events_are_passed_on_one_by_one_and_not_at_the_end(gateway: Gateway) -> None:
    async with gateway(chunked([ONE, HOLD])) as running:
        async with running.client.post(running.url + CHAT, json={"stream": True}) as response:
            assert await response.content.readexactly(len(ONE)) == ONE
        await running.engine.hung_up.wait()


async def test_an_answer_in_one_piece_passes_unchanged(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        status, _, body = await running.post("/v1/completions", {"prompt": "x"})
        assert (status, body) == (200, BODY)
        await running.settled()
        assert await running.metric("understudy_draft_tokens_total", route="completions") == 15
        assert await running.metric("understudy_e2e_seconds_count", route="completions") == 1
        assert await running.metric("understudy_gateway_overhead_seconds_count") == 1


async def test_nothing_of_the_clients_headers_reaches_the_engine(gateway: Gateway) -> None:
    async with gateway(whole(BODY), engine_api_key="ours") as running:
        secret = {"Authorization": "Bearer theirs", "X-Vllm-Priority": "-9", "Cookie": "a=b"}
        await running.post("/v1/completions", {"prompt": "x"}, headers=secret)
        sent = running.engine.requests[0][1].lower()
        assert b"authorization: bearer ours" in sent
        assert b"theirs" not in sent
        assert b"priority" not in sent
        assert b"cookie" not in sent


async def test_a_missing_record_is_counted_and_no_zero_recorded(gateway: Gateway) -> None:
    body = json.dumps({"choices": [{}, {}], "usage": {"prompt_tokens": 4, "completion_tokens": 12}}).encode()
    async with gateway(whole(body)) as running:
        await running.post("/v1/completions", {"prompt": "x", "n": 2})
        await running.settled()
        assert await running.metric("understudy_acceptance_records_missing_total", reason="absent") == 1
        assert await running.metric("understudy_acceptance_rate_count") == 0


async def test_without_a_draft_no_record_is_missed(gateway: Gateway) -> None:
    async with gateway(whole(b'{"choices":[{}]}'), draft_name=None) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        assert await running.metric("understudy_acceptance_records_missing_total") == 0


@pytest.mark.parametrize(("route", "missing"), [("/v1/embeddings", 0), ("/v1/responses", 1)])
async def test_other_routes_are_passed_through(gateway: Gateway, route: str, missing: int) -> None:
    """What ``/v1/responses`` generates with speculation is counted as missing: its answers hold no record."""
    async with gateway(whole(b'{"data":[1]}')) as running:
        status, _, body = await running.post(route, {"input": "x"})
        assert (status, body) == (200, b'{"data":[1]}')
        await running.settled()
        assert await running.metric("understudy_acceptance_records_missing_total", reason="absent") == missing


async def test_streams_of_other_routes_need_no_last_event(gateway: Gateway) -> None:
    stream = b'event: response.completed\ndata: {"usage": {"x": 1}}\n\n'
    async with gateway(chunked([stream])) as running:
        assert (await running.post("/v1/responses", {"stream": True}))[2] == stream


# Clients that leave


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


async def test_connections_are_used_again_after_a_stream(gateway: Gateway) -> None:
    async with gateway(chunked([ONE + USAGE + DONE])) as running:
        for _ in range(5):
            assert (await running.post(CHAT, {"stream": True}))[2] == ONE + DONE
        assert not running.engine.hung_up.is_set()


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


# Engines that fail


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
    [([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12", CUT], 502, "engine_failed"),
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


# Requests that are refused


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/chat/completions/", "/v1/files", "/docs", "/openapi.json", "/v1/load_lora_adapter"]
)
async def test_unknown_routes(gateway: Gateway, path: str) -> None:
    async with gateway(whole(BODY)) as running:
        status, _, body = await running.post(path, {})
        assert (status, error_of(body)["code"]) == (404, "unknown_route")
        assert running.engine.requests == []


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
    async with gateway([HOLD], max_in_flight=1) as running:
        writer = await half_request(running, {"stream": True})
        await running.engine.arrived.wait()
        status, headers, body = await running.post(CHAT, {"messages": []})
        assert (status, error_of(body)["type"]) == (429, "rate_limit_error")
        assert headers["retry-after"]
        writer.close()
        await running.settled()


async def test_a_client_that_stops_reading_is_let_go(gateway: Gateway) -> None:
    flood = b"data: " + b"x" * 60_000 + b"\n\n"
    async with gateway(chunked([flood] * 400), client_stall_s=0.2) as running:
        writer = await half_request(running, {"stream": True})
        await asyncio.wait_for(running.engine.hung_up.wait(), 20)
        await running.settled()
        assert await running.metric("understudy_requests_total", status="client_gone") == 1
        writer.close()


async def test_connections_to_the_engine_are_used_again(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        for _ in range(5):
            assert (await running.post("/v1/completions", {"prompt": "x"}))[0] == 200
        assert not running.engine.hung_up.is_set()


async def test_aiohttp_sees_no_error_on_reuse_after_a_refusal(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running, aiohttp.ClientSession() as session:
        for body in (b"{", b'{"prompt":"x"}', b"[]"):
            headers = {"Content-Type": "application/json"}
            async with session.post(running.url + "/v1/completions", data=body, headers=headers) as response:
                assert response.status in (200, 400)
