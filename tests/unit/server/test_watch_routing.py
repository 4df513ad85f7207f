"""What the watch concludes moves traffic: several engines behind a real gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest

from server.sharing import CanarySettings
from tests.unit.server.answers import BODY
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import Replay, whole

pytestmark = pytest.mark.anyio

PLAIN = json.dumps({"choices": [{}], "usage": {"prompt_tokens": 4, "completion_tokens": 12}}).encode()


def entry(name: str, engine: Replay, draft: str | None, **more: Any) -> dict[str, Any]:
    return {"name": name, "url": engine.url, "model": "m", "draft": draft, **more}


async def pools(running: Running, requests: int) -> list[str]:
    """Where requests went, one after the other."""
    answers = [await running.post("/v1/completions", {"model": "m", "prompt": "x"}) for _ in range(requests)]
    assert {status for status, _, _ in answers} == {200}
    await running.settled()
    return [headers["x-understudy-pool"] for _, headers, _ in answers]


async def test_traffic_leaves_a_draft_that_went_stale_and_a_few_requests_keep_probing(gateway: Gateway) -> None:
    """Each answer of the draft's engine tells of five drafts and a length of 2.2."""
    drift = {"min_drafts": 20, "probing_share": 0.2}
    async with Replay(whole(BODY)).running() as drafting, Replay(whole(PLAIN)).running() as plain:
        engines = [
            entry("a", drafting, "d", expected_mean_acceptance_length=3.5), entry("b", plain, None)
        ]  # fmt: skip
        async with gateway([], engines=engines, drift=drift) as running:
            assert await pools(running, 4) == ["m/d"] * 4
            assert await running.metric("understudy_draft_stale", model="m", draft="d") == 1
            after = await pools(running, 60)
            assert 0 < after.count("m/d") < 40
            assert await running.metric("understudy_routed_requests_total", reason="moved") == after.count("m/none")


async def test_a_canary_gets_its_share_until_it_is_promoted(gateway: Gateway) -> None:
    async with Replay(whole(BODY)).running() as old, Replay(whole(BODY)).running() as new:
        engines = [entry("a", old, "d"), entry("b", new, "new")]
        async with gateway([], engines=engines, canary={"draft": "new", "share": 0.3}) as running:
            found = await pools(running, 160)  # a canary with fewer than 20 requests gets no verdict
            assert 20 <= found.count("m/new") < 90
            async with running.client.get(running.url + "/admin/canary") as response:
                report = await response.json()
            (row,) = report["rows"]
            seen = [row["mean_acceptance_length"][side]["requests"] for side in ("main", "canary")]
            assert seen == [found.count("m/d"), found.count("m/new")]
            assert row["mean_acceptance_length"]["verdict"] == "no difference seen"
            running.gateway.watch.reload(
                running.gateway.settings.model_copy(update={"canary": CanarySettings(draft="new", share=1.0)})
            )
            assert await pools(running, 5) == ["m/new"] * 5
