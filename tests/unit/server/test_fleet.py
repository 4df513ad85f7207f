"""Several engines behind one gateway, over real sockets: who is asked, and what becomes of a request whose engine fails."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest

from server.breaker import BreakerState
from server.facts import Facts
from server.fleet import Fleet
from server.settings import GatewaySettings
from tests.unit.server.answers import BODY, CHAT, DONE, ONE, USAGE, error_of, half_request
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import CUT, HOLD, Replay, chunked, whole

pytestmark = pytest.mark.anyio

NOBODY = "http://127.0.0.1:1"
COMPLETIONS = "/v1/completions"
STREAM = {"model": "m", "stream": True, "messages": []}
ERROR = b'{"error":{"message":"no","type":"x","param":null,"code":null}}'


def entry(name: str, url: str, draft: str | None = "d", **more: Any) -> dict[str, Any]:
    return {"name": name, "url": url, "model": "m", "draft": draft, **more}


@asynccontextmanager
async def two(
    gateway: Gateway, first: list[bytes], second: list[bytes] | None = None, draft: str | None = "d", **settings: Any
) -> AsyncIterator[tuple[Running, Replay, Replay]]:
    """A gateway before engines a and b, which is asked second: with a draft or, if told so, without."""
    async with (
        Replay(first).running() as a,
        Replay(second or whole(BODY)).running() as b,
        gateway([], engines=[entry("a", a.url), entry("b", b.url, draft)], **settings) as running,
    ):
        yield running, a, b


async def until_metric(running: Running, name: str, value: float) -> None:
    for _ in range(500):
        if await running.metric(name, engine="a") == value:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{name} never became {value}")


async def ready(running: Running) -> tuple[int, bytes]:
    async with running.client.get(running.url + "/ready") as response:
        return response.status, await response.read()


async def until_ready(running: Running, status: int) -> bytes:
    for _ in range(500):
        found, body = await ready(running)
        if found == status:
            return body
        await asyncio.sleep(0.02)
    pytest.fail(f"/ready never became {status}")


FAILING = {
    "nobody there": None, "no answer": [CUT], "a status": whole(b"oops", 500), "an error object": whole(ERROR, 503),
    "a stream cut before its first event": chunked([], end=False), "a body cut": [whole(BODY)[0][:-5], CUT],
    "our key refused": whole(b"who?", 401),
    "an error at the begin of a stream": chunked([b'data: {"error": {"message": "no", "code": 500}}\n\n', DONE]),
}  # fmt: skip


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING.keys())
async def test_a_request_goes_on_at_another_engine_before_its_first_byte(
    gateway: Gateway, failing: list[bytes] | None
) -> None:
    async with Replay(failing or []).running() as a, Replay(chunked([ONE + USAGE + DONE])).running() as b:
        engines = [entry("a", a.url if failing else NOBODY), entry("b", b.url, draft=None)]
        async with gateway([], engines=engines, probe_every_s=60) as running:
            status, headers, body = await running.post(CHAT, STREAM)
            assert (status, body) == (200, ONE + DONE)
            assert (headers["x-understudy-pool"], headers["x-understudy-draft"]) == ("m/none", "none")
            await running.settled()
            assert await running.metric("understudy_requests_total", draft="none", status="200") == 1
            assert await running.metric("understudy_requests_total") == 1
            if failing:  # with nobody there, the probe may have been faster
                assert await running.metric("understudy_engine_retries_total", engine="a") == 1
                assert await running.metric("understudy_routed_requests_total", pool="m/d", reason="default") == 1
            assert await running.metric("understudy_engine_in_flight") == 0


@pytest.mark.parametrize("status", [400, 404, 422, 429, 501])
async def test_what_an_engine_refuses_is_refused(gateway: Gateway, status: int) -> None:
    async with two(gateway, whole(ERROR, status), breaker_failures=1) as (running, a, b):
        for _ in range(3):
            assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] == status
        assert (len(a.requests), len(b.requests)) == (3, 0)
        assert await running.metric("understudy_engine_breaker_state") == 0


async def test_after_its_first_byte_a_stream_stays_where_it_is(gateway: Gateway) -> None:
    async with two(gateway, chunked([ONE], end=False)) as (running, _, b):
        _, headers, body = await running.post(CHAT, STREAM)
        assert body.startswith(ONE + b'data: {"error"')
        assert headers["x-understudy-pool"] == "m/d"
        assert b.requests == []
        await running.settled()
        assert await running.metric("understudy_requests_total", status="stream_failed") == 1


@pytest.mark.parametrize(("limits", "asked"), [({"max_retries": 0}, 0), ({"retry_within_s": 0}, 0), ({}, 1)])
async def test_retries_are_bounded(gateway: Gateway, limits: dict[str, Any], asked: int) -> None:
    async with two(gateway, whole(ERROR, 500), whole(ERROR, 503), **limits) as (running, a, b):
        status, _, body = await running.post(COMPLETIONS, {"prompt": "x"})
        assert (status, body) == (503 if asked else 500, ERROR), "the last error passes as it is"
        assert (len(a.requests), len(b.requests)) == (1, asked)


async def test_an_engine_that_refuses_our_key_is_left_alone(gateway: Gateway) -> None:
    async with two(gateway, whole(ERROR, 403), breaker_failures=1, breaker_open_s=30) as (running, a, b):
        for _ in range(3):
            assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] == 200
        assert (len(a.requests), len(b.requests)) == (1, 3)


@pytest.mark.parametrize(
    ("failing", "asked"),
    [([CUT], 2), (whole(b"", 500), 3), (chunked([b'data: {"error": {"code": 500}}\n\n', DONE]), 3)],
    ids=["connections lost", "answers", "events"],
)
async def test_a_request_that_ends_engines_does_not_go_through_all_of_them(
    gateway: Gateway, failing: list[bytes], asked: int
) -> None:
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Replay(failing).running()) for _ in range(3)]
        entries = [entry(name, engine.url) for name, engine in zip("abc", engines, strict=True)]
        running = await stack.enter_async_context(gateway([], engines=entries))
        assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] >= 500
        assert sum(len(engine.requests) for engine in engines) == asked


@pytest.mark.parametrize(("code", "state"), [(500, 2), (400, 0)])
async def test_an_error_in_mid_stream_counts_against_the_engine_that_is_at_fault(
    gateway: Gateway, code: int, state: int
) -> None:
    error = b'data: {"error": {"message": "no", "code": %d}}\n\n' % code
    async with two(gateway, chunked([ONE + error + DONE]), breaker_failures=1, breaker_open_s=30) as (running, _, _):
        assert (await running.post(CHAT, STREAM))[2] == ONE + error + DONE
        await running.settled()
        assert await running.metric("understudy_engine_breaker_state", engine="a") == state


async def test_an_engine_that_fails_again_and_again_is_left_alone(gateway: Gateway) -> None:
    fields: dict[str, Any] = {"breaker_failures": 2, "breaker_open_s": 60, "breaker_max_open_s": 60}
    async with two(gateway, whole(b"", 500), **fields) as (running, a, b):
        for _ in range(5):
            assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] == 200
        assert (len(a.requests), len(b.requests)) == (2, 5)
        assert await running.metric("understudy_engine_breaker_state", engine="a") == 2
        assert (await ready(running))[0] == 200


LIMIT_S = 0.3


@pytest.mark.parametrize("held", [[HOLD], chunked([ONE, HOLD])], ids=["before the head", "in mid-answer"])
async def test_our_own_time_out_counts_against_a_silent_engine_and_a_client_that_leaves_does_not(
    gateway: Gateway, held: list[bytes]
) -> None:
    fields: dict[str, Any] = {"breaker_failures": 2, "breaker_open_s": 60, "breaker_max_open_s": 60}
    async with two(gateway, held, **fields) as (running, a, _):
        for left in range(3):
            writer = await half_request(running, STREAM)
            await running.until(lambda wanted=left + 1: len(a.requests) == wanted)  # type: ignore[misc]
            writer.close()
            await running.settled()
        assert await running.metric("understudy_engine_breaker_state", engine="a") == 0
    async with two(gateway, held, request_timeout_s=LIMIT_S, **fields) as (running, a, b):
        for _ in range(3):
            assert b"request_timeout" in (await running.post(CHAT, STREAM))[2] or b.requests
        await running.settled()
        assert (len(a.requests), len(b.requests)) == (2, 1)
        assert await running.metric("understudy_engine_breaker_state", engine="a") == 2


class Judged:
    """A try at the first of two engines, with a clock of its own, that ends as the test says."""

    def __init__(self) -> None:
        self.now = 0.0
        engines = [entry("a", NOBODY), entry("b", NOBODY + "1")]
        fields = {"engines": engines, "request_timeout_s": 10, "breaker_failures": 1}
        self.fleet = Fleet(GatewaySettings.model_validate(fields), clock=lambda: self.now)

    async def end(self, silent_s: float, writing_s: float, asked_s: float = 0, timed_out: bool = True) -> bool:
        """Whether the engine was blamed: asked late, writing, silent at last, until the whole was ended."""
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(None) as limit:
                with self.fleet.attempt(Facts("m"), limit) as attempt:
                    self.now += asked_s
                    await attempt.hear(asyncio.sleep(0))
                    attempt.head(200)
                    self.now += writing_s
                    waiting = asyncio.ensure_future(attempt.hear(asyncio.Event().wait()))
                    await asyncio.sleep(0)
                    self.now += silent_s
                    limit.reschedule(loop.time() if timed_out else None)
                    if not timed_out:
                        waiting.cancel()
                    await waiting
        return self.fleet.members["a"].breaker.state(self.now) is BreakerState.OPEN


@pytest.mark.parametrize(
    ("times", "blamed"),
    [({"silent_s": 10, "writing_s": 0}, True), ({"silent_s": 5, "writing_s": 5}, True),
     ({"silent_s": 0.1, "writing_s": 9.9}, False), ({"silent_s": 1, "writing_s": 0, "asked_s": 9}, False),
     ({"silent_s": 10, "writing_s": 0, "timed_out": False}, False)],
    ids=["silent", "silent for half of it", "writing all the time", "asked late", "its client left"],
)  # fmt: skip
async def test_a_time_out_is_the_engines_fault_when_it_was_silent_for_half_of_it(
    times: dict[str, Any], blamed: bool
) -> None:
    assert await Judged().end(**times) is blamed


async def test_a_name_that_is_never_resolved_is_waited_for_no_longer_than_a_connection(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, resolve = threading.Event(), socket.getaddrinfo

    def never(host: str | None, *more: Any, **options: Any) -> Any:
        if host == "nobody.invalid":
            answered.wait(20)
        return resolve(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", never)
    engines = [entry("a", "http://nobody.invalid:1")]
    async with gateway([], engines=engines, connect_timeout_s=0.1, probe_every_s=60, probe_timeout_s=60) as running:
        asking = running.post(COMPLETIONS, {"prompt": "x"})
        status, _, body = await asyncio.wait_for(asking, 10)
        answered.set()
    assert (status, error_of(body)["code"]) == (503, "engine_unreachable")


async def test_a_trial_whose_answer_is_long_lets_others_follow(gateway: Gateway) -> None:
    fields: dict[str, Any] = {"breaker_failures": 1, "breaker_open_s": 0.05, "breaker_max_open_s": 0.05}
    async with two(gateway, whole(b"", 500), **fields) as (running, a, _):
        assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] == 200
        await running.until(lambda: running.gateway.fleet.can_take("a", running.gateway.fleet.clock()))
        a.pieces = chunked([ONE, HOLD])
        trial = await half_request(running, STREAM)
        await until_metric(running, "understudy_engine_breaker_state", 0)
        a.pieces = whole(BODY)
        asked = await running.post(COMPLETIONS, {"prompt": "x"})
        assert (asked[0], running.gateway.fleet.can_take("a", running.gateway.fleet.clock())) == (200, True)
        trial.close()
        await running.settled()


@pytest.mark.parametrize(
    ("more", "headers", "reason"),
    [({"logit_bias": {"5": 1}}, {}, "logit_bias"), ({"min_p": 0.1}, {}, "min_p"),
     ({}, {"X-Understudy-Speculation": "off"}, "header")],
)  # fmt: skip
async def test_what_a_draft_refuses_goes_to_a_plain_engine_or_is_refused_unasked(
    gateway: Gateway, more: dict[str, Any], headers: dict[str, str], reason: str
) -> None:
    async with two(gateway, whole(BODY), draft=None) as (running, a, _):
        status, told, _ = await running.post(COMPLETIONS, {"prompt": "x", **more}, headers=headers)
        assert (status, told["x-understudy-pool"], len(a.requests)) == (200, "m/none", 0)
        assert await running.metric("understudy_routed_requests_total", pool="m/none", reason=reason) == 1
    async with gateway(whole(BODY)) as running:
        for path in (COMPLETIONS, CHAT, "/v1/responses"):
            status, _, body = await running.post(path, {"prompt": "x", **more}, headers=headers)
            assert (status, error_of(body)["code"]) == (400, "no_plain_engine")
        assert (await running.post("/v1/embeddings", {"input": "x", **more}, headers=headers))[0] == 200
        assert len(running.engine.requests) == 1


async def test_one_plain_engine_takes_all(gateway: Gateway) -> None:
    async with gateway(whole(BODY), draft_name=None) as running:
        off = {"X-Understudy-Speculation": "off"}
        status, told, _ = await running.post(COMPLETIONS, {"model": "any", "min_p": 1}, headers=off)
        assert (status, told["x-understudy-draft"]) == (200, "none")
        status, _, body = await running.post(COMPLETIONS, {}, headers={"X-Understudy-Speculation": "perhaps"})
        assert (status, error_of(body)["code"]) == (400, "invalid_header")


@pytest.mark.parametrize("several", [False, True])
async def test_an_engine_killed_in_mid_stream_is_told_to_all_and_served_again_when_back(
    gateway: Gateway, several: bool
) -> None:
    engine = Replay(chunked([ONE, HOLD]))
    async with engine.running():
        fields: dict[str, Any] = {"engines": [entry("a", engine.url)]} if several else {"engine_url": engine.url}
        async with gateway([], **fields, probe_every_s=0.05, breaker_open_s=60, breaker_max_open_s=60) as running:
            await until_ready(running, 200)
            streams = [asyncio.create_task(running.post(CHAT, STREAM)) for _ in range(8)]
            await running.until(lambda: len(engine.requests) == 8)
            await asyncio.sleep(0.05)
            await engine.kill()
            for status, _, body in await asyncio.gather(*streams):
                assert status == 200
                assert body.startswith(ONE + b'data: {"error"')
                assert body.endswith(DONE)
            told = await until_ready(running, 503)
            assert "no engine is up for m" in str(told) or not several
            status, headers, _ = await running.post(CHAT, STREAM)
            assert (status, headers["retry-after"]) == (503, "1")
            engine.pieces = chunked([ONE + DONE])
            async with engine.running():
                await until_ready(running, 200)
                assert (await running.post(CHAT, STREAM))[2] == ONE + DONE
                assert await running.metric("understudy_engine_departures_total") == 1


async def test_an_engine_that_goes_quiet_gets_no_more_requests_until_it_generates_again(gateway: Gateway) -> None:
    async with two(gateway, [HOLD], probe_every_s=0.02, stuck_s=0.2) as (running, a, b):
        await until_metric(running, "understudy_engine_up", 1)
        waiting = asyncio.create_task(running.post(COMPLETIONS, {"prompt": "x"}))
        await until_metric(running, "understudy_engine_up", 0)
        for _ in range(2):
            assert (await running.post(COMPLETIONS, {"prompt": "x"}))[0] == 200
        assert len(b.requests) == 2
        a.pieces = whole(BODY)
        await until_metric(running, "understudy_engine_up", 1)
        assert await running.metric("understudy_engine_token_probes_total", engine="a") >= 1
        waiting.cancel()


async def test_ready_names_the_models_that_nobody_serves(gateway: Gateway) -> None:
    async with Replay(whole(BODY)).running() as a:
        engines = [entry("a", a.url), {**entry("b", NOBODY), "model": "other"}]
        async with gateway([], engines=engines) as running:
            status, body = await ready(running)
            assert (status, error_of(body)["message"]) == (503, "no engine is up for other")
            for model, wanted in (("m", 200), ("other", 503), ("nobody", 404)):
                async with running.client.get(f"{running.url}/ready?model={model}") as response:
                    assert response.status == wanted
            status, _, body = await running.post(COMPLETIONS, {"prompt": "x"})
            assert (status, error_of(body)["code"]) == (400, "missing_model")
            status, _, body = await running.post(COMPLETIONS, {"model": "x"})
            assert (status, error_of(body)["code"]) == (404, "model_not_found")
            assert await running.metric("understudy_requests_total", model="unrouted") == 2


async def test_the_lists_of_models_are_joined(gateway: Gateway) -> None:
    lists = [json.dumps({"data": [{"id": one, "root": "/secret"}, {"id": "more"}]}).encode() for one in ("m", "n")]
    async with Replay(whole(lists[0])).running() as a, Replay(whole(lists[1])).running() as b:
        engines = [entry("a", a.url), {**entry("b", b.url), "model": "n"}, entry("c", NOBODY)]
        async with gateway([], engines=engines) as running, running.client.get(running.url + "/v1/models") as response:
            assert json.loads(await response.read())["data"] == [{"id": "m", "root": "m"}, {"id": "n", "root": "n"}]


async def test_each_engine_gets_its_own_key_and_no_more_than_it_may_have(gateway: Gateway) -> None:
    async with Replay([HOLD]).running() as a, Replay(whole(BODY)).running() as b:
        engines = [entry("a", a.url, api_key="key-a", max_in_flight=1), entry("b", b.url, draft=None)]
        async with gateway([], engines=engines, engine_api_key="key-b") as running:
            held = asyncio.create_task(running.post(COMPLETIONS, {"prompt": "x"}))
            await a.arrived.wait()
            assert (await running.post(COMPLETIONS, {"prompt": "x"}))[1]["x-understudy-pool"] == "m/none"
            assert b"Bearer key-a" in a.requests[0][1]
            assert b"Bearer key-b" in b.requests[0][1]
            assert await running.metric("understudy_engine_in_flight", engine="a") == 1
            held.cancel()
            await running.settled()
