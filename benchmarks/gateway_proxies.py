"""The proxies of `make bench-gateway`: how each is installed in a throw-away environment, configured and started.

Every one listens on loopback only and, where it can, checks a key and offers metrics.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway_load import Load
from server.tenants import hash_key

KEY = "sk-bench-0123456789abcdef"
START_S = 180.0
STOP_S = 10.0

SMG = "smg==1.13.0"
LITELLM = ("litellm[proxy]==1.106.2", "prometheus-client==0.22.1")

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location /metrics {{ stub_status; }}
    location / {{
      if ($http_authorization != "Bearer {key}") {{ return 401; }}
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""

LITELLM_CONFIG = """
model_list:
  - model_name: bench
    litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{callbacks: [prometheus], telemetry: false, drop_params: true}}
"""


class NotInstallable(Exception):
    """A proxy that cannot be had here; the message says why."""


@dataclass(frozen=True)
class Proxy:
    """One proxy."""

    name: str
    install: Callable[[Path], str]
    """Makes the environment in a folder, unless it is there; gives the version. Raises NotInstallable."""
    command: Callable[[Path, int, int], list[str]]
    """From folder, upstream's port and own port; writes the configuration."""
    authenticates: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def _pip(folder: Path, *packages: str) -> str:
    python = folder / "venv" / "bin" / "python"
    marker = folder / "installed"
    if not marker.is_file() or marker.read_text() != " ".join(packages):
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if subprocess.run(install, stderr=subprocess.DEVNULL).returncode:
            raise NotInstallable(f"pip install {' '.join(packages)} failed")
        marker.write_text(" ".join(packages))
    return packages[0].partition("==")[2]


def _nginx_version(folder: Path) -> str:
    """Debian's nginx: the installed one, or else its package unpacked, which installs nothing."""
    program = _nginx(folder)
    if program is None:
        _unpack_nginx(folder)
        program = _nginx(folder)
    if program is None:
        raise NotInstallable("no nginx here, and Debian's package could not be fetched")
    said = subprocess.run([program, "-v"], capture_output=True, text=True).stderr
    found = re.search(r"nginx/([\d.]+)", said)
    if found is None:
        raise NotInstallable(f"nginx does not start: {said.strip()[:200]}")
    return found[1]


def _nginx(folder: Path) -> str | None:
    unpacked = folder / "usr" / "sbin" / "nginx"
    return shutil.which("nginx", path=os.defpath + ":/usr/sbin") or (str(unpacked) if unpacked.is_file() else None)


def _unpack_nginx(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        return
    subprocess.run(["apt-get", "download", "nginx"], cwd=folder, capture_output=True)
    for package in folder.glob("nginx_*.deb"):
        subprocess.run(["dpkg", "-x", package, folder], check=True)


def _nginx_command(folder: Path, upstream: int, port: int) -> list[str]:
    user = "user root;" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, upstream=upstream, port=port, key=KEY, user=user))
    program = _nginx(folder)
    assert program is not None
    return [program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


def _smg_command(folder: Path, upstream: int, port: int) -> list[str]:
    return [
        str(folder / "venv" / "bin" / "smg"), "launch", "--worker-urls", f"http://127.0.0.1:{upstream}",
        "--host", "127.0.0.1", "--port", str(port), "--tenant-api-key", f"bench:{KEY}", "--disable-tokenizer-autoload",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "warn",
    ]  # fmt: skip


def _litellm_command(folder: Path, upstream: int, port: int) -> list[str]:
    config = folder / "config.yaml"
    config.write_text(LITELLM_CONFIG.format(upstream=upstream, key=KEY))
    program = folder / "venv" / "bin" / "litellm"
    return [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]


def revision() -> str:
    """This checkout's."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown revision"


def _understudy_command(folder: Path, upstream: int, port: int) -> list[str]:
    tenants = folder / "tenants.yaml"
    tenants.write_text(f"tenants: [{{name: bench, keys: ['{hash_key(KEY)}']}}]\n", encoding="utf-8")
    return [
        sys.executable, "-m", "understudy", "serve", "--engine-url", f"http://127.0.0.1:{upstream}", "--model", "bench",
        "--port", str(port), "--allow-faulty-sampling", "--set", "draft_name=d", "--tenants", str(tenants),
        "--set", "access_log=false",
    ]  # fmt: skip


PROXIES = (
    Proxy("nginx", _nginx_version, _nginx_command),
    Proxy("smg", lambda folder: _pip(folder, SMG), _smg_command),
    Proxy(
        "litellm", lambda folder: _pip(folder, *LITELLM), _litellm_command,
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"},
    ),
    Proxy("understudy", lambda _: revision(), _understudy_command),
)  # fmt: skip


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def answers(port: int, key: str) -> str:
    """Empty when a request is answered; otherwise what went wrong."""
    request = Load(port, False, 1, 1, key).request()
    head, _, body = request.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return "" if answer.status == 200 and json.loads(said)["choices"] else f"{answer.status} {said[:300]!r}"


@contextlib.contextmanager
def running(proxy: Proxy, folder: Path, upstream: int, core: int | None) -> Iterator[tuple[int, int]]:
    """Runs a proxy for as long as the block runs; gives its process id and port.

    Raises:
        NotInstallable: it does not come up; the message holds the last words of its log.
    """
    port = free_port()
    log = folder / "log"
    environment = {**os.environ, **proxy.environment, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    if proxy.name != "understudy":
        environment.pop("PYTHONPATH")
    with log.open("wb") as out:
        child = subprocess.Popen(
            proxy.command(folder.resolve(), upstream, port), stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            start_new_session=True, env=environment,
            preexec_fn=None if core is None else lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
    try:
        wait_ready(child, port, KEY if proxy.authenticates else "", log)
        yield child.pid, port
    finally:
        stop(child)


def wait_ready(child: subprocess.Popen[bytes], port: int, key: str, log: Path) -> None:
    """Waits until a request is answered.

    Raises:
        NotInstallable: the process ended, or nothing was answered for long.
    """
    deadline, said = time.monotonic() + START_S, ""
    while time.monotonic() < deadline and child.poll() is None:
        said = answers(port, key)
        if not said:
            return
        time.sleep(0.5)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no log"]
    raise NotInstallable(f"does not serve ({said or child.returncode}); its last word: {last[0][:300]}")


def stop(child: subprocess.Popen[bytes]) -> None:
    """Ends a process and all of its group."""
    child.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(STOP_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
