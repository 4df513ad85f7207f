"""The routes for people who watch, over real sockets."""

from __future__ import annotations

import json
import re

import pytest

from server.pages import FOLDER
from tests.unit.server.answers import BODY
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import whole

pytestmark = pytest.mark.anyio


async def get(running: Running, path: str) -> tuple[int, dict[str, str], bytes]:
    async with running.client.get(running.url + path) as response:
        return response.status, {key.lower(): value for key, value in response.headers.items()}, await response.read()


async def test_the_live_figures_follow_the_requests(gateway: Gateway) -> None:
    async with gateway(whole(BODY), expected_mean_acceptance_length=2.0, expected_speedup=1.5) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        status, headers, body = await get(running, "/live.json")
        assert (status, headers["cache-control"]) == (200, "no-store")
        live = json.loads(body)
        assert (live["models"], live["phase"], live["requests_in_flight"]) == (["m"], "serving", 0)
        assert live["output_tokens_per_s"] == 12
        assert [(engine["name"], engine["pool"], engine["in_flight"]) for engine in live["engines"]] == [
            ("engine", "m/d", 0)
        ]
        (pool,) = live["pools"]
        assert (pool["name"], pool["state"], pool["drafts"]) == ("m/d", "fresh", 5)
        assert pool["mean_acceptance_length"] == 2.2
        assert pool["speedup"]["from_acceptance"] == pytest.approx(1.5 * 2.2 / 2.0)


async def test_what_is_expected_is_counted_by_what_was_proposed(gateway: Gateway) -> None:
    """Of the 20 tokens of five drafts, 5 would have been accepted of a draft with the stated length of 2; 6 were."""
    async with gateway(whole(BODY), expected_mean_acceptance_length=2.0) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        assert await running.metric("understudy_expected_accepted_tokens_total") == 5
        assert await running.metric("understudy_accepted_tokens_total") == 6
    async with gateway(whole(BODY), expected_mean_acceptance_length=3.0, expected_acceptance_rate=0.25) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        assert (
            0 < await running.metric("understudy_expected_accepted_tokens_total") < 10
        )  # stated of 8 tokens, 4 were proposed


async def test_clients_name_their_prompts_kind_of_those_that_are_known(gateway: Gateway) -> None:
    canary = {"draft": "d", "share": 1.0}
    async with gateway(whole(BODY), prompt_kinds=("code",), canary=canary) as running:
        for named in ({"X-Understudy-Kind": "code"}, {"X-Understudy-Kind": "secret"}, {}):
            await running.post("/v1/completions", {"prompt": "x"}, headers=named)
        await running.settled()
        report = running.gateway.watch.canary_report()
    found = {row["kind"]: row["mean_acceptance_length"]["canary"]["requests"] for row in report["rows"]}
    assert found == {"code": 1, "completions": 2, "all": 3}


async def test_an_engine_that_goes_and_comes_back_stands_among_the_alerts(gateway: Gateway) -> None:
    async with gateway([], probe_every_s=0.02) as running:
        member = running.gateway.fleet.members["engine"]
        await running.until(lambda: member.up)
        await running.engine.kill()
        await running.until(lambda: len(running.gateway.watch.alerts) == 1)
        async with running.engine.running():
            await running.until(lambda: len(running.gateway.watch.alerts) == 2)
            alerts = json.loads((await get(running, "/live.json"))[2])["alerts"]
    assert [(alert["engine"], alert["state"]) for alert in alerts] == [("engine", "back"), ("engine", "away")]
    assert [alert["text"] for alert in alerts] == ["the engine is back", "the engine is away"]


@pytest.mark.parametrize("admin_port", [None, 0])
async def test_the_page_brings_all_it_needs_along(gateway: Gateway, admin_port: int | None) -> None:
    async with gateway([], admin_port=admin_port) as running:
        status, headers, page = await get(running, "/")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'" in headers["content-security-policy"]
        for path in re.findall(r'(?:src|href)="([^":]+)"', page.decode()):
            assert (await get(running, f"/{path}"))[0] == 200, path
        assert (b'href="metrics"' in page) is (admin_port is None)
    assert not any(re.search(r"(https?:)?//[a-z]", file.read_text()) for file in FOLDER.iterdir())


async def test_the_page_can_be_left_out(gateway: Gateway) -> None:
    async with gateway([], live_page=False) as running:
        assert [(await get(running, path))[0] for path in ("/", "/page.js", "/live.json")] == [404, 404, 404]


async def test_the_canarys_comparison(gateway: Gateway) -> None:
    async with gateway(whole(BODY), canary={"draft": "d", "share": 0.2}) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        report = json.loads((await get(running, "/admin/canary"))[2])
        assert (report["canary"]["share"], report["main"], report["pools"]) == (0.2, [], ["m/d"])
        assert report["rows"][0]["mean_acceptance_length"]["canary"]["value"] == 2.2
