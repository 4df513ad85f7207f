"""Tenants, the queue and the admin port, over real sockets."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from starlette.requests import Request

from server.admin import Admin
from server.door import Phase
from server.engine import bind
from server.reloading import Reloaded
from server.run import make_admin_server
from server.tenants import hash_key
from tests.unit.server.answers import BODY, CHAT, DONE, ONE, USAGE, error_of, half_request
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import HOLD, chunked, whole

pytestmark = pytest.mark.anyio

LIMITS = {"requests_per_minute": 100, "tokens_per_minute": 1000}


def key(name: str) -> dict[str, dict[str, str]]:
    return {"headers": {"Authorization": f"Bearer sk-{name}"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two tenants: ``a`` with budgets, ``b`` with one model only."""
    tenants = [
        {"name": "a", "keys": [hash_key("sk-a")], **LIMITS},
        {"name": "b", "keys": [hash_key("sk-b")], "models": ["other"]},
    ]
    path = tmp_path / "tenants.yaml"
    path.write_text(json.dumps({"tenants": tenants}))
    return path


async def test_only_who_has_a_key_is_let_in(gateway: Gateway, file: Path) -> None:
    async with gateway(whole(BODY), tenants_file=file) as running:
        for more, code in (({}, "missing_api_key"), (key("c"), "invalid_api_key")):
            status, headers, body = await running.post(CHAT, {}, **more)
            assert (status, error_of(body)["code"]) == (401, code)
            assert (headers["x-should-retry"], headers["www-authenticate"]) == ("false", "Bearer")
        async with running.client.get(running.url + "/v1/models") as response:
            assert response.status == 401
        assert running.engine.requests == []
        assert await running.metric("understudy_requests_total", tenant="unknown", status="401") == 2
        assert (await running.post(CHAT, {}, **key("b")))[0] == 403
        assert await running.metric("understudy_refusals_total", tenant="b", reason="model_not_allowed") == 1


async def test_answers_tell_what_is_left_and_metrics_whose_they_were(gateway: Gateway, file: Path) -> None:
    async with gateway(chunked([ONE + USAGE + DONE]), tenants_file=file) as running:
        asked = {"stream": True, "max_tokens": 300}
        more = {"headers": {**key("a")["headers"], "X-Request-Id": "mine"}}
        _, headers, _ = await running.post(CHAT, asked, **more)
        assert (headers["x-ratelimit-remaining-tokens"], headers["x-request-id"]) == ("700", "mine")
        _, headers, _ = await running.post(CHAT, asked, **key("a"))
        assert headers["x-ratelimit-remaining-tokens"] == "684"  # 16 used by the first, 300 set aside
        assert headers["x-ratelimit-remaining-requests"] == "98"
        await running.settled()
        assert await running.metric("understudy_accepted_tokens_total", tenant="a") == 12
        assert await running.metric("understudy_chunk_gap_seconds_count", tenant="b") == 0


async def test_a_budget_holds_under_requests_side_by_side(gateway: Gateway, file: Path) -> None:
    async with gateway([HOLD], tenants_file=file) as running:
        asking = [asyncio.create_task(running.post(CHAT, {"max_tokens": 60}, **key("a"))) for _ in range(64)]
        await running.until(lambda: sum(task.done() for task in asking) == 64 - 1000 // 60)
        refused = [task.result() for task in asking if task.done()]
        assert {(status, error_of(body)["code"]) for status, _, body in refused} == {(429, "rate_limit_exceeded")}
        assert all(int(headers["retry-after"]) > 50 for _, headers, _ in refused)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await running.settled()
        async with aiohttp.ClientSession() as fresh:  # no connection that has been idle for long
            _, headers, _ = await replace(running, client=fresh).post(CHAT, {"max_tokens": 1001}, **key("a"))
        assert (headers["x-ratelimit-remaining-tokens"], headers["x-should-retry"]) == ("40", "false")


async def test_who_leaves_the_queue_never_reaches_the_engine(gateway: Gateway) -> None:
    async with gateway([HOLD], max_in_flight=1) as running:
        first = await half_request(running, {"stream": True})
        await running.engine.arrived.wait()
        second = await half_request(running, {"stream": True})
        await running.until(lambda: running.door.admission.queued == 1)
        assert await running.metric("understudy_requests_queued") == 1
        second.close()
        await running.until(lambda: running.door.running == 1)
        assert running.door.admission.queued == 0
        first.close()
        await running.settled()
        assert len(running.engine.requests) == 1
        assert await running.metric("understudy_queue_wait_seconds_count") == 1
        assert await running.metric("understudy_acceptance_records_missing_total") == 1


async def test_the_queue_is_served_when_places_become_free(gateway: Gateway) -> None:
    async with gateway(whole(BODY), max_in_flight=2) as running:
        answers = await asyncio.gather(*(running.post(CHAT, {}) for _ in range(20)))
        assert {status for status, _, _ in answers} == {200}
        await running.settled()
        assert running.door.admission.running == 0


@pytest.mark.parametrize("cut", [False, True])
async def test_queued_requests_end_well_when_the_gateway_does(gateway: Gateway, cut: bool) -> None:
    async with gateway([HOLD], max_in_flight=1, queue_wait_s=30) as running:
        first = await half_request(running, {"stream": True})
        await running.engine.arrived.wait()
        queued = asyncio.create_task(running.post(CHAT, {}))
        await running.until(lambda: running.door.admission.queued == 1)
        running.door.phase = Phase.DRAINING
        if cut:
            running.door.cut.set()
            status, headers, body = await queued
            assert (status, error_of(body)["code"], headers["retry-after"]) == (503, "draining", "1")
        else:
            running.engine.pieces = whole(BODY)
            first.close()
            assert (await queued)[0] == 200
        first.close()
        await running.settled()


async def test_an_answer_that_takes_too_long_is_ended(gateway: Gateway) -> None:
    async with gateway([HOLD], request_timeout_s=0.1) as running:
        status, _, body = await running.post(CHAT, {})
        assert (status, error_of(body)["code"]) == (504, "request_timeout")
        await asyncio.wait_for(running.engine.hung_up.wait(), 10)
        await running.settled()
    async with gateway(chunked([ONE, HOLD]), request_timeout_s=0.2) as running:
        status, _, body = await running.post(CHAT, {"stream": True})
        assert (status, b"request_timeout" in body, body.endswith(DONE)) == (200, True, True)


async def test_unknown_fields_are_refused_where_that_is_asked_for(gateway: Gateway) -> None:
    async with gateway(whole(BODY), strict=True) as running:
        status, _, body = await running.post(CHAT, {"temprature": 1})
        assert (status, error_of(body)["param"]) == (400, "temprature")


async def ask(running: Running, url: str, method: str = "GET") -> tuple[int, dict]:
    async with running.client.request(method, url) as response:
        return response.status, json.loads(await response.read())


def spoil(file: Path) -> None:
    file.write_text("tenants: []")


@pytest.mark.parametrize(
    ("there", "settings", "good_file", "status", "told"),
    [(False, None, True, 404, "nothing to read again"), (False, "read", True, 200, ["drift"]),
     (False, "bad", True, 422, "settings: refused (no such key)"), (True, "read", True, 200, ["drift"]),
     (True, "bad", True, 422, "settings: refused (no such key); tenants: read"),
     (True, "read", False, 422, "settings: read; tenants: refused ("), (True, None, False, 422, "tenants: refused (")],
)  # fmt: skip
async def test_a_reload_tells_what_came_of_settings_and_of_tenants(
    gateway: Gateway, file: Path, there: bool, settings: str | None, good_file: bool, status: int, told: object
) -> None:
    async with gateway(whole(BODY), tenants_file=file if there else None) as running:
        outcomes = {
            "read": Reloaded(running.gateway.settings, ("drift",)),
            "bad": Reloaded(running.gateway.settings, refused="no such key"),
        }
        running.gateway.reload_settings = lambda: outcomes.get(settings or "")
        if not good_file:
            spoil(file)
        request = Request({"type": "http", "method": "POST", "path": "/admin/reload", "headers": []})
        answer = await Admin(running.gateway).reload(request)
        shown = json.loads(bytes(answer.body))
        assert answer.status_code == status
        if status == 200:
            assert shown["settings"]["changed"] == told
            assert shown["tenants"] == (["a", "b"] if there else None)
        else:
            assert str(told) in shown["error"]["message"]


async def test_the_admin_port(gateway: Gateway, file: Path) -> None:
    async with gateway(whole(BODY), tenants_file=file, admin_port=0) as running:
        assert (await ask(running, f"{running.url}/metrics"))[0] == 404
        with bind("127.0.0.1", 0) as socket:
            server = make_admin_server(running.gateway)
            serving = asyncio.create_task(server.serve(sockets=[socket]))
            url = f"http://127.0.0.1:{socket.getsockname()[1]}"
            await running.until(lambda: server.started)
            async with running.client.get(f"{url}/metrics") as response:
                assert "understudy_requests_queued" in await response.text()
            assert (await ask(running, f"{url}/ready"))[0] == 200
            status, shown = await ask(running, f"{url}/admin/status")
            assert (status, shown["phase"], shown["engines"][0]["state"]) == (200, "serving", "up")
            assert [tenant["name"] for tenant in shown["tenants"]] == ["a", "b"]
            assert await ask(running, f"{url}/admin/reload", "POST") == (
                200, {"settings": None, "tenants": ["a", "b"]},
            )  # fmt: skip
            spoil(file)
            assert (await ask(running, f"{url}/admin/reload", "POST"))[0] == 422
            assert (await ask(running, f"{url}/v1/models"))[0] == 404
            server.should_exit = True
            await serving
        assert (await ask(running, f"{running.url}/admin/status"))[0] == 404
