"""Where the gateway's CPU time goes: ``python -m benchmarks.gateway_profile stream|whole [REQUESTS]``.

The gateway runs in this process under cProfile, streamer and client in processes of their own. The profiler itself more than
doubles the cost of Python's calls but not of system calls, so shares are rough; the first line is without it.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import pstats
import sys
import time
from dataclasses import asdict

import uvloop

from benchmarks.gateway import CHUNKS_PER_S, Plan, set_plan, streamer
from benchmarks.gateway_load import Load, Result
from server.engine import bind
from server.run import make_server
from server.settings import GatewaySettings

CONNECTIONS = 4
SHOWN = 30


async def carry_out(load: Load) -> Result:
    """Runs a load in a process of its own, without blocking this one."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.gateway_load", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate(json.dumps(asdict(load)).encode())
    return Result(**json.loads(out))


async def profile(upstream: int, load: Load) -> None:
    """Prints CPU time per request and per 1,000 chunks, then the functions that took most."""
    settings = GatewaySettings(engine_url=f"http://127.0.0.1:{upstream}", served_model_name="bench", draft_name="d")
    with bind(settings.host, 0) as socket:
        socket.listen(128)
        server = make_server(settings)
        serving = asyncio.create_task(server.serve(sockets=[socket]))
        asked = Load(socket.getsockname()[1], load.stream, load.connections, load.requests)
        await carry_out(asked)
        began_s = time.process_time()
        result = await carry_out(asked)
        spent_s = time.process_time() - began_s
        chunks = f", {1e6 * spent_s / result.events:.1f} ms/1,000 chunks" if load.stream else ""
        print(f"{1e3 * spent_s / load.requests:.2f} ms/request{chunks}; errors: {result.errors}")
        profiler = cProfile.Profile(time.process_time)
        profiler.enable()
        await carry_out(asked)
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(SHOWN)
        server.should_exit = True
        await serving


def main(arguments: list[str]) -> None:
    """Starts the streamer and profiles."""
    stream = arguments[0] == "stream"
    requests = int(arguments[1]) if len(arguments) > 1 else 40 if stream else 800
    uvloop.install()
    with streamer(None) as upstream:
        set_plan(upstream, Plan().chunks, CONNECTIONS / CHUNKS_PER_S)
        asyncio.run(profile(upstream, Load(0, stream, CONNECTIONS, requests)))


if __name__ == "__main__":
    main(sys.argv[1:])
