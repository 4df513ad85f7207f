"""A gateway as a process of its own, in front of an engine that is already there: for measuring and for tests.

A process, because a measuring client in the same process would share the interpreter lock with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from server.engine import bind
from server.run import loop_factory, make_server
from server.settings import GatewaySettings
from stages.errors import EngineError

STOP_S = 10.0
UNDISTURBED = {"access_log": False, "probe_every_s": 5.0, "stuck_s": 3600.0}
"""Settings for an engine that is being measured: few probes, and no token of the gateway's own."""


def _child_environment() -> dict[str, str]:
    """This process's environment, with the project where the child can import it."""
    project = str(Path(__file__).resolve().parent.parent)
    paths = [project, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _settings_line(settings: GatewaySettings) -> bytes:
    return json.dumps(settings.model_dump(), default=_reveal).encode() + b"\n"


def _reveal(value: Any) -> str:
    """What JSON has no word for; a key goes to the child as it is."""
    return str(value.get_secret_value() if isinstance(value, SecretStr) else value)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Closing the pipe is the word to stop; so the child also stops when this process is killed."""
    assert child.stdin is not None
    with suppress(OSError):
        child.stdin.close()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


@contextmanager
def background_gateway(
    engine_url: str, served_model_name: str, draft_name: str | None = None, **more: object
) -> Iterator[str]:
    """Runs a gateway for as long as the block runs; yields its base URL (without ``/v1``).

    Args:
        engine_url: an engine that answers already; it is neither checked nor stopped.
        served_model_name: label of the metrics.
        draft_name: label of the metrics; None when the engine does not speculate.
        more: further fields of GatewaySettings.

    Raises:
        EngineError: when the gateway does not come up.
    """
    fields = {"port": 0, **UNDISTURBED, **more, "engine_url": engine_url, "served_model_name": served_model_name}
    settings = GatewaySettings.model_validate({**fields, "draft_name": draft_name})
    child = subprocess.Popen(
        [sys.executable, "-m", "server.background"], env=_child_environment(),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with suppress(BrokenPipeError):
            child.stdin.write(_settings_line(settings))
            child.stdin.flush()
        port = child.stdout.readline().decode().strip()
        if not port.isdigit():
            raise EngineError(f"the gateway did not come up (exit code {child.wait(STOP_S)}); its error is above")
        yield f"http://{settings.host}:{port}"
    finally:
        _stop(child)


async def _run(settings: GatewaySettings) -> None:
    with bind(settings.host, settings.port) as socket:
        socket.listen(2048)
        server = make_server(settings)
        loop = asyncio.get_running_loop()

        def stop_at_end_of_input() -> None:
            sys.stdin.buffer.read()
            loop.call_soon_threadsafe(setattr, server, "should_exit", True)

        threading.Thread(target=stop_at_end_of_input, daemon=True).start()
        print(socket.getsockname()[1], flush=True)
        await server.serve(sockets=[socket])


def main() -> None:
    """The child: settings on the first line of standard input, the port on standard output, the end at end of input."""
    settings = GatewaySettings.model_validate_json(sys.stdin.buffer.readline())
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run(settings))


if __name__ == "__main__":
    main()
