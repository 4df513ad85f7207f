"""What schemathesis makes of our OpenAPI: every operation of a real gateway, in front of an engine that judges as vLLM does.

The gateway must answer whatever comes, and only as the document says: statuses, media types, bodies, headers, keys, methods.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from server.engine import bind
from server.run import make_admin_server
from server.tenants import hash_key
from tests.clients import replies
from tests.unit.server.conftest import Gateway, Running
from tests.unit.server.replay import Replay, chunked, whole

pytestmark = pytest.mark.anyio

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")
"""Of each operation and phase; few for every day, more when something about the routes has changed."""
KEY = "sk-schemathesis"
TENANTS = json.dumps({"tenants": [{"name": "a", "keys": [hash_key(KEY)], "requests_per_minute": 10**6}]})
CLI = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"


class Judging(Replay):
    """An engine that serves vLLM's replies, and refuses messages that are none."""

    def pieces_for(self, body: bytes) -> list[bytes]:
        path = self.requests[-1][0].split(" ")[1]
        if path == "/v1/models":
            return whole(replies.dump(replies.models()))
        request = json.loads(body)
        if path == "/v1/chat/completions" and not are_messages(request.get("messages")):
            return whole(replies.dump(replies.error(400, "1 validation error", "Bad Request", "messages")), 400)
        if path in ("/v1/embeddings", "/v1/responses"):
            return whole(b'{"object": "list", "data": []}')
        is_chat, asked = "chat" in path, {"stream_options": request.get("stream_options")}
        if request.get("stream"):
            chunks = (replies.chat_stream if is_chat else replies.completion_stream)(asked)
            return chunked([b"data: " + replies.dump(one) + b"\n\n" for one in chunks] + [b"data: [DONE]\n\n"])
        return whole(replies.dump((replies.chat if is_chat else replies.completion)(asked)))


def are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in value)


async def tried(running: Running, url: str, folder: Path, *options: str) -> str:
    """What schemathesis says; empty when it has found nothing.

    The responses `default` are left out: they stand for whatever an engine may refuse with, and this one is known.
    """
    async with running.client.get(f"{url}/openapi.json") as response:
        found = await response.json()
    for operation in (one for methods in found["paths"].values() for one in methods.values()):
        operation["responses"].pop("default", None)
    (folder / "openapi.json").write_text(json.dumps(found))
    command = [
        sys.executable, "-c", CLI, "run", str(folder / "openapi.json"), "--url", url, "--no-color", "--seed", "0",
        "--checks", "all", "--generation-database", "none", "--max-examples", EXAMPLES,
        "--header", f"Authorization: Bearer {KEY}", *options,
    ]  # fmt: skip
    out = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=out, stderr=asyncio.subprocess.STDOUT)
    said, _ = await process.communicate()
    return "" if process.returncode == 0 else said.decode()


async def never_failed(running: Running) -> None:
    """No request ended as a fault of the gateway's own."""
    assert await running.metric("understudy_requests_total", status="200") > 0
    assert await running.metric("understudy_requests_total", status="500") == 0


@pytest.mark.parametrize("strict", [False, True])
async def test_the_gateway_does_what_its_document_says(gateway: Gateway, strict: bool, tmp_path: Path) -> None:
    async with Judging().running() as engine:
        settings: dict[str, Any] = {"engine_url": engine.url, "draft_name": None, "tenants": TENANTS, "strict": strict}
        async with gateway([], **settings, acceptance_header=True) as running:
            options = ("--phases", "fuzzing") if strict else ()  # each of all known fields in turn would take long
            assert not await tried(running, running.url, tmp_path, *options)
            await never_failed(running)


async def test_the_admin_port_does_what_its_document_says(gateway: Gateway, tmp_path: Path) -> None:
    async with gateway([]) as running:
        with bind("127.0.0.1", 0) as socket:
            server = make_admin_server(running.gateway)
            task = asyncio.create_task(server.serve(sockets=[socket]))
            try:
                await running.until(lambda: server.started)
                assert not await tried(running, f"http://127.0.0.1:{socket.getsockname()[1]}", tmp_path)
            finally:
                server.should_exit = True
                await task
