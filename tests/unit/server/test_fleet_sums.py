"""Several engines behind one gateway: what it counts of speculation is what the engines counted."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from server.tenants import hash_key
from tests.unit.server.answers import DONE, ONE
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import Replay, chunked, whole
from tests.unit.server.test_fleet import entry

pytestmark = pytest.mark.anyio

COMPLETIONS = "/v1/completions"


@dataclass
class Counting(Replay):
    """An engine that draws what each answer says of speculation, and counts it as vLLM does."""

    chance: random.Random = field(default_factory=lambda: random.Random(0))
    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("drafts", "draft_tokens", "accepted_tokens", "output_tokens"), 0)
    )
    of_tenants: dict[str, Counter[str]] = field(default_factory=dict)
    """The same by what its requests give as their user."""
    speculates: bool = True
    fails: int = 0

    def pieces_for(self, body: bytes) -> list[bytes]:
        if self.fails and self.chance.random() < 0.3:
            return whole(b"", 500)
        drafts = self.chance.randrange(5)
        record = {
            "num_spec_steps": drafts,
            "num_draft_tokens": 3 * drafts,
            "num_accepted_draft_tokens": self.chance.randint(0, 3 * drafts),
        }
        output = self.chance.randint(1, 20)
        payload: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": output}}
        counted = {"output_tokens": output}
        if self.speculates:
            payload["metrics"] = {"speculative_decoding": record}
            counted |= dict(zip(self.counters, record.values(), strict=False))
        of_tenant = self.of_tenants.setdefault(json.loads(body).get("user", ""), Counter())
        for name, value in counted.items():
            self.counters[name] += value
            of_tenant[name] += value
        if json.loads(body).get("stream"):
            return chunked([ONE, b"data: " + json.dumps(payload).encode() + b"\n\n" + DONE])
        return whole(json.dumps({**payload, "choices": [{}]}).encode())


async def test_sums_of_each_tenant_equal_what_the_engines_counted_for_it(gateway: Gateway, tmp_path: Path) -> None:
    names = ("shop", "lab")
    file = tmp_path / "tenants.yaml"
    file.write_text(json.dumps({"tenants": [{"name": name, "keys": [hash_key(f"sk-{name}")]} for name in names]}))
    async with (
        Counting(chance=random.Random(1), fails=1).running() as a, Counting(chance=random.Random(2)).running() as b,
        Counting(chance=random.Random(3)).running() as c,
    ):  # fmt: skip
        engines = [entry("a", a.url), entry("b", b.url), entry("c", c.url, draft="new")]
        async with gateway([], engines=engines, breaker_failures=1000, tenants_file=file) as running:
            rng = random.Random(5)

            async def ask(_: int) -> None:
                name = rng.choice(names)
                asked = {"model": "m", "prompt": "x", "stream": rng.random() < 0.5, "user": name}
                key = {"Authorization": f"Bearer sk-{name}"}
                assert (await running.post(COMPLETIONS, asked, headers=key))[0] == 200

            for start in range(0, 60, 12):
                await asyncio.gather(*map(ask, range(start, start + 12)))
            await running.settled()
            for counter in a.counters:
                counted = [await running.metric(f"understudy_{counter}_total", tenant=name) for name in names]
                assert counted == [sum(one.of_tenants[name][counter] for one in (a, b, c)) for name in names]
                assert all(counted), "a run that shows nothing"
                assert sum(counted) == sum(one.counters[counter] for one in (a, b, c))
                assert await running.metric(f"understudy_{counter}_total") == sum(counted), "nothing of anybody else"


async def test_sums_equal_the_counters_of_all_engines_on_a_closed_run(gateway: Gateway) -> None:
    async with (
        Counting(chance=random.Random(1), fails=1).running() as a, Counting(chance=random.Random(2)).running() as b,
        Counting(chance=random.Random(3)).running() as c, Counting(chance=random.Random(4), speculates=False).running() as p,
    ):  # fmt: skip
        engines = [entry("a", a.url), entry("b", b.url), entry("c", c.url, draft="new"), entry("p", p.url, draft=None)]
        async with gateway([], engines=engines, breaker_failures=1000) as running:
            rng = random.Random(5)

            async def ask(_: int) -> None:
                bias = {"logit_bias": {"1": 1}} if rng.random() < 0.3 else {}
                asked = {"model": "m", "prompt": "x", "stream": rng.random() < 0.5, **bias}
                assert (await running.post(COMPLETIONS, asked))[0] == 200

            for start in range(0, 60, 12):
                await asyncio.gather(*map(ask, range(start, start + 12)))
            await running.settled()
            for draft, members in {"d": (a, b), "new": (c,), "none": (p,)}.items():
                for name in a.counters:
                    wanted = sum(member.counters[name] for member in members)
                    assert wanted or draft == "none", "a run that shows nothing"
                    assert await running.metric(f"understudy_{name}_total", model="m", draft=draft) == wanted
            assert await running.metric("understudy_requests_total", status="200") == 60
            assert await running.metric("understudy_acceptance_records_missing_total") == 0
            assert await running.metric("understudy_engine_retries_total", engine="a") > 0
            assert await running.metric("understudy_routed_requests_total") == 60
