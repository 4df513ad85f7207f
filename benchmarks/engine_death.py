"""How the gateway bears an engine that is killed in mid-stream: ``python -m benchmarks.engine_death TRIALS``.

The engine is a process of its own that streams made-up events. Each trial opens some streams, kills the engine (SIGKILL),
reads the streams to their ends, watches ``/ready``, starts the engine again on the same port and asks until it is
served. Prints three promises as JSON: how often each was tried and kept, and the worst time seen.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from server.background import background_gateway
from server.engine import choose_port

STREAMS = 4
TOLD_S, BACK_S = 2.0, 5.0
"""What is promised: 503 on ``/ready`` after the engine's death, an answer after its return."""

ENGINE = r"""
import asyncio, contextlib, sys

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'

async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        if head.startswith(b"GET /health"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
        else:
            writer.write(HEAD)
            while not writer.is_closing():
                writer.write(EVENT)
                await writer.drain()
                await asyncio.sleep(0.02)
    writer.close()

async def main():
    async with await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1])) as server:
        print("up", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


def start_engine(port: int) -> subprocess.Popen[bytes]:
    """Starts the engine and waits until it listens."""
    engine = subprocess.Popen([sys.executable, "-S", "-c", ENGINE, str(port)], stdout=subprocess.PIPE)
    assert engine.stdout is not None
    engine.stdout.readline()
    return engine


@asynccontextmanager
async def stream(client: aiohttp.ClientSession, url: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A stream; the block begins with its first byte."""
    asked = {"model": "m", "stream": True, "messages": []}
    async with client.post(f"{url}/v1/chat/completions", json=asked) as response:
        await response.content.readuntil(b"\n\n")
        yield response


async def rest_of_one(client: aiohttp.ClientSession, url: str, begun: asyncio.Semaphore) -> bytes:
    """Reads a stream to its end; tells when it has begun."""
    async with stream(client, url) as response:
        begun.release()
        return await response.read()


async def seconds_until(client: aiohttp.ClientSession, url: str, status: int) -> float:
    """How long it takes until ``/ready`` says so."""
    started = time.perf_counter()
    while True:
        async with client.get(f"{url}/ready") as response:
            if response.status == status:
                return time.perf_counter() - started
        await asyncio.sleep(0.01)


async def seconds_until_served(client: aiohttp.ClientSession, url: str) -> float:
    """How long it takes until a request is answered with 200."""
    started = time.perf_counter()
    while True:
        async with client.post(f"{url}/v1/chat/completions", json={"model": "m", "stream": True}) as response:
            if response.status == 200:
                return time.perf_counter() - started
        await asyncio.sleep(0.01)


async def trial(
    url: str, port: int, engine: subprocess.Popen[bytes]
) -> tuple[subprocess.Popen[bytes], bool, float, float]:
    """One death and return: the new engine, whether all streams ended with an error, and the two times in seconds."""
    async with aiohttp.ClientSession() as client:
        begun = asyncio.Semaphore(0)
        reading = [asyncio.create_task(rest_of_one(client, url, begun)) for _ in range(STREAMS)]
        for _ in reading:
            await begun.acquire()
        engine.kill()
        told_s = await seconds_until(client, url, 503)
        ends = await asyncio.gather(*reading)
        engine.wait()
        again = start_engine(port)
        back_s = await seconds_until_served(client, url)
    ended = all(b'data: {"error"' in end and end.endswith(b"data: [DONE]\n\n") for end in ends)
    return again, ended, told_s, back_s


def promise(text: str, kept: list[bool], worst_s: float | None = None) -> dict[str, object]:
    """One row."""
    worst = None if worst_s is None else round(worst_s, 3)
    return {"promise": text, "tried": len(kept), "kept": sum(kept), "worst": worst, "unit": "s"}


def main() -> None:
    """All trials."""
    num_trials = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    port = choose_port(None)
    engine, ended, told, back = start_engine(port), list[bool](), list[float](), list[float]()
    try:
        with background_gateway(f"http://127.0.0.1:{port}", "m", probe_every_s=0.5) as url:
            for _ in range(num_trials):
                engine, all_ended, told_s, back_s = asyncio.run(trial(url, port, engine))
                ended.append(all_ended)
                told.append(told_s)
                back.append(back_s)
    finally:
        engine.kill()
        engine.wait()
    rows = [
        promise(f"engine killed in mid-stream: an error event to all {STREAMS} streams", ended),
        promise(f"503 on /ready within {TOLD_S:g} s of its death", [one <= TOLD_S for one in told], max(told)),
        promise(f"served again within {BACK_S:g} s of its return", [one <= BACK_S for one in back], max(back)),
    ]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
