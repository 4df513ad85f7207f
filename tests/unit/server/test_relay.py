"""What the relay passes on and counts, over real sockets, in front of an engine that replays bytes."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from server.stream import only_names_the_role
from tests.unit.server.answers import BODY, CHAT, DONE, KEEP_ALIVE, ONE, ROLE, TWO, USAGE, pieces_of
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import HOLD, Replay, chunked, whole

pytestmark = pytest.mark.anyio

DETAILS = {"accepted_prediction_tokens": 6, "rejected_prediction_tokens": 9}


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
    async with gateway(chunked([stream]), usage_details=False) as running:
        asked = {"stream": True, "messages": [], "stream_options": {"include_usage": True}}
        assert (await running.post(CHAT, asked))[2] == stream


@pytest.mark.parametrize("size", [1, 64, 4096])
async def test_the_usage_chunk_tells_of_acceptance_and_nothing_else_changes(gateway: Gateway, size: int) -> None:
    async with gateway(chunked(pieces_of(ONE + USAGE + DONE, size))) as running:
        asked = {"stream": True, "messages": [], "stream_options": {"include_usage": True}}
        body = (await running.post(CHAT, asked))[2]
    assert body.startswith(ONE)
    assert body.endswith(DONE)
    sent, got = (json.loads(chunk.removeprefix(b"data: ")) for chunk in (USAGE, body[len(ONE) : -len(DONE)]))
    assert got["usage"].pop("completion_tokens_details") == DETAILS
    assert got == sent


async def test_an_answer_in_one_piece_tells_of_acceptance(gateway: Gateway) -> None:
    async with gateway(whole(BODY), acceptance_header=True) as running:
        _, headers, body = await running.post("/v1/completions", {"prompt": "x"})
    assert json.loads(body)["usage"]["completion_tokens_details"] == DETAILS
    told = "drafts=5, draft-tokens=15, accepted-tokens=6, mean-acceptance-length=2.200"
    assert headers["x-understudy-acceptance"] == told


async def test_acceptance_is_counted_by_kind_of_output(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        await running.post(CHAT, {"messages": []})
        for _ in range(2):
            await running.post(CHAT, {"messages": [], "response_format": {"type": "json_object"}})
        await running.settled()
        counted = [await running.metric("understudy_drafts_total", kind=kind) for kind in ("plain", "structured")]
        assert counted == [5, 10]


async def test_events_are_passed_on_one_by_one_and_not_at_the_end(gateway: Gateway) -> None:
    async with gateway(chunked([ONE, HOLD])) as running:
        async with running.client.post(running.url + CHAT, json={"stream": True}) as response:
            assert await response.content.readexactly(len(ONE)) == ONE
        await running.engine.hung_up.wait()


async def test_an_answer_in_one_piece_passes_unchanged(gateway: Gateway) -> None:
    async with gateway(whole(BODY), usage_details=False) as running:
        status, headers, body = await running.post("/v1/completions", {"prompt": "x"})
        assert (status, body) == (200, BODY)
        assert "x-understudy-acceptance" not in headers
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
    async with gateway(whole(body), acceptance_header=True) as running:
        _, headers, told = await running.post("/v1/completions", {"prompt": "x", "n": 2})
        assert told == body
        assert "x-understudy-acceptance" not in headers
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


async def test_embeddings_as_bytes_come_with_what_says_how_to_read_them(gateway: Gateway) -> None:
    answer = whole(b"\x00\x01", content_type="application/octet-stream", headers='Metadata: {"data": []}\r\n')
    async with gateway(answer) as running:
        _, headers, body = await running.post("/v1/embeddings", {"input": "x", "encoding_format": "bytes"})
        assert (headers["content-type"], headers["metadata"]) == ("application/octet-stream", '{"data": []}')
        assert body == b"\x00\x01"


async def test_streams_of_other_routes_need_no_last_event(gateway: Gateway) -> None:
    stream = b'event: response.completed\ndata: {"usage": {"x": 1}}\n\n'
    async with gateway(chunked([stream])) as running:
        assert (await running.post("/v1/responses", {"stream": True}))[2] == stream


async def test_only_events_with_a_piece_of_the_answer_are_timed(gateway: Gateway) -> None:
    kinds = ("created", "in_progress", "output_text.delta", "output_text.delta", "output_text.done", "completed")
    events = [
        b'event: response.%s\ndata: {"type": "response.%s"}\n\n' % (kind.encode(), kind.encode()) for kind in kinds
    ]
    for sent, gaps in ((events, 1), (events[:2] + events[4:], 0)):
        async with gateway(chunked(sent)) as running:
            assert (await running.post("/v1/responses", {"stream": True}))[2] == b"".join(sent)
            await running.settled()
            assert await running.metric("understudy_chunk_gap_seconds_count") == gaps
            assert await running.metric("understudy_time_to_first_token_seconds_count") == gaps


async def test_what_an_engine_sets_for_one_client_does_not_go_along_with_anothers_request(gateway: Gateway) -> None:
    async with Replay(whole(BODY, headers="Set-Cookie: replica=3\r\n")).running() as engine:
        by_name = engine.url.replace("127.0.0.1", "localhost")  # addresses have no cookies
        async with gateway([], engine_url=by_name) as running:
            for _ in range(2):
                assert (await running.post("/v1/completions", {"prompt": "x"}))[0] == 200
        assert [b"cookie" in headers.lower() for _, headers, _ in engine.requests] == [False, False]


async def test_a_time_out_after_the_last_event_is_nobodys_business(gateway: Gateway) -> None:
    async with gateway([*chunked([ONE + DONE])[:-1], HOLD], request_timeout_s=0.8) as running:
        assert (await running.post(CHAT, {"stream": True}))[2] == ONE + DONE
        await running.settled()
        assert await running.metric("understudy_refusals_total") == 0
        assert await running.metric("understudy_requests_total", status="200") == 1


async def test_refused_requests_do_not_shorten_the_time_that_others_are_expected_to_take(gateway: Gateway) -> None:
    async with gateway(whole(b'{"error": {"message": "no"}}', 404)) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        assert running.door.admission.service_s is None
        running.engine.pieces = whole(BODY)
        await running.post("/v1/completions", {"prompt": "x"})
        assert running.door.admission.service_s is not None


async def test_metrics_are_written_beside_the_streams_and_not_between_them(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(whole(BODY)) as running:
        metrics, threads = running.gateway.metrics, []
        monkeypatch.setattr(metrics, "exposition", lambda: threads.append(threading.current_thread()) or b"")
        assert await running.metric("anything") == 0
        assert threads != [threading.current_thread()]
        assert len(threads) == 1


async def test_connections_are_used_again_after_a_stream(gateway: Gateway) -> None:
    async with gateway(chunked([ONE + USAGE + DONE])) as running:
        for _ in range(5):
            assert (await running.post(CHAT, {"stream": True}))[2] == ONE + DONE
        assert not running.engine.hung_up.is_set()


async def test_an_engine_that_does_not_end_its_encoding_holds_no_place(gateway: Gateway) -> None:
    async with gateway([*chunked([ONE + DONE])[:-1], HOLD]) as running:
        assert (await running.post(CHAT, {"stream": True}))[2] == ONE + DONE
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
        await running.settled()
        assert await running.metric("understudy_requests_total", status="200") == 1


async def test_connections_to_the_engine_are_used_again(gateway: Gateway) -> None:
    async with gateway(whole(BODY)) as running:
        for _ in range(5):
            assert (await running.post("/v1/completions", {"prompt": "x"}))[0] == 200
        assert not running.engine.hung_up.is_set()
