from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from server import app
from server.app import make_door
from server.door import Door
from server.engine import bind
from server.run import Server, gateway_of, make_server
from server.settings import GatewaySettings
from tests.unit.server.replay import Replay


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Running:
    """A real gateway on a real socket, in front of a replaying engine."""

    url: str
    port: int
    door: Door
    client: aiohttp.ClientSession
    engine: Replay
    gateway: app.Gateway
    server: Server

    @property
    def unsent(self) -> list[int]:
        """What the gateway has written and not sent, in bytes, for each connection of a client."""
        return [one.transport.get_write_buffer_size() for one in self.server.server_state.connections]

    async def post(self, path: str, body: bytes | dict, **more: object) -> tuple[int, dict[str, str], bytes]:
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        headers = {"Content-Type": "application/json", **more.pop("headers", {})}  # type: ignore[dict-item]
        async with self.client.post(self.url + path, headers=headers, **sent, **more) as response:
            lowered = {key.lower(): value for key, value in response.headers.items()}
            return response.status, lowered, await response.read()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        async with self.client.get(self.url + "/metrics") as response:
            text = await response.text()
        total = 0.0
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            wanted = [f'{key}="{text_}"' for key, text_ in labels.items()]
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                total += float(value)
        return total

    async def settled(self) -> None:
        """Waits until no request is under way."""
        await self.until(lambda: self.door.running == 0)
        assert await self.metric("understudy_requests_in_flight") == 0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a condition, at most 10 s."""
        for _ in range(1000):
            if condition():
                return
            await asyncio.sleep(0.01)
        pytest.fail("waited 10 s in vain")


Gateway = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def gateway() -> Gateway:
    @asynccontextmanager
    async def run(pieces: list[bytes], engine_url: str | None = None, **settings: object) -> AsyncIterator[Running]:
        async with Replay(pieces).running() as engine, aiohttp.ClientSession() as client:
            url = None if "engines" in settings else engine_url or engine.url
            fields = {"engine_url": url, "served_model_name": "m", "draft_name": "d", "access_log": False, **settings}
            resolved = GatewaySettings.model_validate(fields)
            door = make_door(resolved)
            with bind("127.0.0.1", 0) as socket:
                port = socket.getsockname()[1]
                server = make_server(resolved, door)
                task = asyncio.create_task(server.serve(sockets=[socket]))
                running = Running(f"http://127.0.0.1:{port}", port, door, client, engine, gateway_of(server), server)
                try:
                    await running.until(lambda: server.started)
                    yield running
                finally:
                    server.should_exit = True
                    await task

    return run
