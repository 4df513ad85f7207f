"""From not ready to the end, with a process of its own and real signals, in front of a replaying engine."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from server.tenants import hash_key
from tests.unit.server.answers import BODY, CHAT, answer_in_full, error_of, unread_request
from tests.unit.server.replay import HOLD, Replay, whole

pytestmark = pytest.mark.anyio

SERVE = """
import sys
from server.run import serve
from server.settings import GatewaySettings

serve(GatewaySettings.model_validate_json(sys.argv[1]), allow_faulty_sampling=True)
"""


@dataclass
class Life:
    """A running `serve`."""

    process: asyncio.subprocess.Process
    client: aiohttp.ClientSession
    engine: Replay
    lines: list[str] = field(default_factory=list)

    async def says(self, word: str) -> str:
        """Waits for a line with a word in it."""
        assert self.process.stderr is not None
        async with asyncio.timeout(180):
            while True:
                line = (await self.process.stderr.readline()).decode()
                self.lines.append(line)
                if word in line:
                    return line
                if not line:
                    pytest.fail(f"ended without saying {word!r}: {self.lines}")

    async def post(self, url: str, key: str = "k") -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {key}"}
        async with self.client.post(url + CHAT, json={"messages": []}, headers=headers) as response:
            return response.status, await response.read()

    async def until_status(self, url: str, path: tuple[str, str], wanted: object) -> None:
        """Waits until the admin port shows a value, at most 180 s."""
        async with asyncio.timeout(180):
            while True:
                async with self.client.get(f"{url}/admin/status") as response:
                    shown = await response.json()
                if (shown[path[0]][path[1]] if path[1] else shown[path[0]]) == wanted:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def life(**settings: object) -> AsyncIterator[Life]:
    async with Replay([HOLD]).running() as engine, aiohttp.ClientSession() as client:
        given = json.dumps({"port": 0, "engine_url": engine.url, "admin_port": 0, **settings})
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVE, given, stderr=pipe)
        try:
            yield Life(process, client, engine)
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()


def write(path: Path, *names: str) -> None:
    tenants = [{"name": name, "keys": [hash_key("k" if name == "a" else name)]} for name in names]
    path.write_text(json.dumps({"tenants": tenants}))


async def test_what_is_under_way_or_queued_is_finished_before_the_end(tmp_path: Path) -> None:
    file = tmp_path / "tenants.yaml"
    write(file, "a")
    async with life(tenants_file=str(file), max_in_flight=1, drain_s=600, queue_wait_s=600) as served:
        url = (await served.says("gateway: http")).split()[1]
        admin = (await served.says("/admin on")).split()[-1]
        await served.says("gateway: ready")
        first = asyncio.create_task(served.post(url))
        await served.engine.arrived.wait()
        queued = asyncio.create_task(served.post(url))
        await served.until_status(admin, ("requests", "queued"), 1)
        write(file, "a", "b")
        served.process.send_signal(signal.SIGHUP)
        await served.says("tenants: 2 read")
        served.process.send_signal(signal.SIGTERM)
        await served.until_status(admin, ("phase", ""), "draining")
        async with served.client.get(f"{admin}/ready") as response:
            assert response.status == 503
        status, body = await served.post(url, "b")
        assert (status, error_of(body)["code"]) == (503, "draining")
        served.engine.pieces = whole(BODY)
        first.cancel()
        status, body = await queued
        assert (status, json.loads(body)["metrics"]) == (200, json.loads(BODY)["metrics"])
        assert await served.process.wait() == 0
        log = (await served.process.communicate())[1].decode().splitlines()
        ends = [json.loads(line)["status"] for line in [*served.lines, *log] if line.startswith("{")]
        assert sorted(ends) == ["200", "503", "client_gone"]


async def test_a_large_answer_reaches_a_slow_reader_before_the_end() -> None:
    large = b'{"choices": [{"text": "' + b"x" * 16_000_000 + b'"}]}'
    async with life(drain_s=600) as served:
        port = int((await served.says("gateway: http")).split()[1].rpartition(":")[2])
        admin = (await served.says("/admin on")).split()[-1]
        await served.says("gateway: ready")
        served.engine.pieces = whole(large)
        with unread_request(port, {}) as client:
            begun = await asyncio.get_running_loop().sock_recv(client, 1)
            served.process.send_signal(signal.SIGTERM)
            await served.until_status(admin, ("phase", ""), "draining")
            await served.until_status(admin, ("requests", "under_way"), 1)
            assert await asyncio.wait_for(answer_in_full(client, begun), 180) == large
        assert await asyncio.wait_for(served.process.wait(), 180) == 0


async def test_a_second_signal_ends_it_at_once() -> None:
    async with life(drain_s=600, leave_s=600) as served:
        url = (await served.says("gateway: http")).split()[1]
        admin = (await served.says("/admin on")).split()[-1]
        await served.says("gateway: ready")
        asking = asyncio.create_task(served.post(url))
        await served.engine.arrived.wait()
        served.process.send_signal(signal.SIGTERM)
        await served.until_status(admin, ("phase", ""), "leaving")
        served.process.send_signal(signal.SIGTERM)
        status, body = await asking
        assert (status, error_of(body)["code"]) == (503, "draining")
        assert await asyncio.wait_for(served.process.wait(), 180) == 0


async def test_a_bad_tenants_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    async with life(tenants_file=str(tmp_path / "none")) as served:
        await served.says("No such file")
        assert await served.process.wait() != 0
