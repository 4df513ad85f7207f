"""Clients as others wrote them, each in a throw-away environment, against the gateway.

Not part of `make test`: it installs packages. The engine replays vLLM's bytes; with ``CLIENTS_PAIR=FOLDER`` it is the real one,
serving that pair.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.engine import LocalEngine, choose_port
from server.pair import engine_settings, read_pair
from server.tenants import hash_key
from tests.clients.replies import MODEL

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENTS = ROOT / "build" / "clients"
START_S, CLIENT_S, INSTALL_S = 300.0, 600.0, 900.0
MAX_IN_FLIGHT = 4
KEYS = {name: f"sk-clients-{name}-0123456789" for name in ("everyone", "narrow", "tiny")}
TENANTS = f"""
tenants:
  - {{name: everyone, keys: ["{hash_key(KEYS["everyone"])}"]}}
  - {{name: narrow, keys: ["{hash_key(KEYS["narrow"])}"], concurrent_requests: 1, requests_per_minute: 1000, models: [{MODEL}]}}
  - {{name: tiny, keys: ["{hash_key(KEYS["tiny"])}"], tokens_per_minute: 50}}
"""


@dataclass(frozen=True)
class Client:
    """A client, where it comes from, and the script that uses it."""

    name: str
    packages: tuple[str, ...] = ()

    @property
    def script(self) -> Path:
        """Prints one line for each thing that worked."""
        return HERE / f"with_{self.name}{'.py' if self.packages else '.sh'}"


CLIENTS = (
    Client("openai", ("openai==3.54.0",)),
    Client("langchain", ("langchain-openai==1.7.3",)),
    Client("litellm", ("litellm==1.106.2", "mcp")),  # which it imports for tools, and does not ask for
    Client("curl"),
)


@pytest.fixture(scope="module")
def engine_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The replaying engine, or the real one."""
    if pair := os.environ.get("CLIENTS_PAIR"):
        log = tmp_path_factory.mktemp("engine") / "engine.log"
        with LocalEngine(engine_settings(read_pair(Path(pair)), log)) as real:
            yield real.url
        return
    command = [sys.executable, "-m", "tests.clients.engine"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as replaying:
        assert replaying.stdout is not None
        yield f"http://127.0.0.1:{replaying.stdout.readline().strip()}"


@pytest.fixture(scope="module")
def gateway_url(engine_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`understudy serve` in front of the engine, with tenants and few places, so that there is something to be refused."""
    folder, port = tmp_path_factory.mktemp("gateway"), choose_port(None)
    (folder / "tenants.yaml").write_text(TENANTS)
    command = [
        sys.executable, "-m", "understudy", "serve", "--engine-url", engine_url, "--model", MODEL, "--port", str(port),
        "--tenants", str(folder / "tenants.yaml"), "--allow-faulty-sampling", "--set", "draft_name=draft",
        "--set", f"max_in_flight={MAX_IN_FLIGHT}", "--set", "max_queued=0",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        serving = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    try:
        wait_ready(serving, f"http://127.0.0.1:{port}/ready", folder / "log")
        yield f"http://127.0.0.1:{port}"
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        serving.terminate()
        serving.wait(START_S)


def wait_ready(serving: subprocess.Popen[bytes], address: str, log: Path) -> None:
    opener, deadline = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + START_S
    while time.monotonic() < deadline and serving.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), opener.open(address, timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(f"the gateway is not ready: {log.read_text()[-1000:]}")


def program(client: Client) -> list[str]:
    """What runs the client's script: its own environment's Python, made where it is not there yet."""
    if not client.packages:
        return ["sh"]
    folder = ENVIRONMENTS / client.name
    python, marker = folder / "bin" / "python", folder / "installed"
    if not marker.is_file() or marker.read_text() != " ".join(client.packages):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *client.packages]
        done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_S)
        if done.returncode:
            pytest.skip(f"{client.name} cannot be installed here: {done.stderr.strip()[-300:]}")
        marker.write_text(" ".join(client.packages))
    return [str(python)]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_unchanged_clients(client: Client, gateway_url: str) -> None:
    told = {
        "OPENAI_BASE_URL": f"{gateway_url}/v1", "OPENAI_API_BASE": f"{gateway_url}/v1",
        "OPENAI_API_KEY": KEYS["everyone"], "NARROW_KEY": KEYS["narrow"], "TINY_KEY": KEYS["tiny"],
        "MAX_IN_FLIGHT": str(MAX_IN_FLIGHT), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | told
    command = [*program(client), str(client.script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CLIENT_S)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
