"""The gateway under test: ``understudy serve --engine-url`` as a process of its own, with its log and admin port."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gateway_proxies import stop
from benchmarks.gateway_streamer import MODEL
from benchmarks.promises.client import Answer, ask, get, post
from stages.errors import EngineError

START_S = 180.0
ROOT = Path(__file__).resolve().parents[2]
MAIN_PORT = re.compile(r"^gateway: http://127\.0\.0\.1:(\d+)", re.MULTILINE)
ADMIN_PORT = re.compile(r"^gateway: metrics and /admin on http://127\.0\.0\.1:(\d+)", re.MULTILINE)
READY = "gateway: ready"


@dataclass(frozen=True)
class Served:
    """A gateway that serves."""

    child: subprocess.Popen[bytes]
    port: int
    admin_port: int
    log: Path

    async def ask(self, data: bytes) -> Answer:
        """Sends a request to it."""
        return await ask(self.port, data)

    async def ready(self) -> int:
        """The status of ``/ready``."""
        return (await ask(self.port, get("/ready"))).status

    async def requests(self) -> dict[str, Any]:
        """What it says of the requests it has."""
        answer = await ask(self.admin_port, get("/admin/status"))
        return dict(json.loads(answer.body)["requests"])

    async def reload(self) -> Answer:
        """Has it read its files again, over the admin port."""
        return await ask(self.admin_port, post("/admin/reload", b""))

    async def settled(self, within_s: float, **counts: int) -> float | None:
        """Waits until these of its counts are as given; the reading of `time.monotonic` when they were, None: never."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            found = await self.requests()
            if all(found[name] == count for name, count in counts.items()):
                return time.monotonic()
            await asyncio.sleep(0.001)
        return None


def _command(engine_url: str, options: Sequence[str], settings: dict[str, object]) -> list[str]:
    return [
        sys.executable, "-m", "understudy", "serve", "--engine-url", engine_url, "--model", MODEL, "--port", "0",
        "--admin-port", "0", "--allow-faulty-sampling", *options,
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
    ]  # fmt: skip


@asynccontextmanager
async def gateway(
    engine_url: str, log: Path, core: int | None = None, options: Sequence[str] = (), **settings: object
) -> AsyncIterator[Served]:
    """Runs a gateway for as long as the block runs; from the beginning on it is ready.

    Args:
        engine_url: its engine, which answers already.
        log: where its output goes, the access log included.
        core: the processor it has for itself; None: any.
        options: of the command line.
        settings: the gateway's, as ``--set`` takes them.

    Raises:
        EngineError: it does not come up; the message holds the last words of its log.
    """
    child = _start(_command(engine_url, options, settings), log, core)
    try:
        yield await _ready(child, log)
    finally:
        await asyncio.to_thread(stop, child)


def _start(command: Sequence[str], log: Path, core: int | None) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


async def _ready(child: subprocess.Popen[bytes], log: Path) -> Served:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and child.poll() is None:
        said = _said(log)
        main, admin = MAIN_PORT.search(said), ADMIN_PORT.search(said)
        if READY in said and main and admin:
            return Served(child, int(main[1]), int(admin[1]), log)
        await asyncio.sleep(0.05)
    last = _said(log).strip().splitlines()[-1:] or ["no log"]
    raise EngineError(f"the gateway does not come up (exit code {child.poll()}); its last word: {last[0][:300]}")
