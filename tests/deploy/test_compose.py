"""`docker compose up` on a real Docker engine, as far as a machine without a registry allows.

Base images are made of Debian's packages, Prometheus is Debian's, Grafana is left out, and the pair is a pico pair. Everything
else is what a user gets: images, compose files, networks, health checks, the order in which things start and end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from server.engine import choose_port
from tests.deploy.docker_engine import Docker, NoDocker, docker_engine
from tests.deploy.stand_in import import_base, write_pair
from tests.integration.conftest import get, wait_for
from tests.unit.docker.test_observability import BOARDS, OF_THE_ENGINE

ROOT = Path(__file__).resolve().parents[2]
PYTHON_IMAGE, PROMETHEUS_IMAGE = "python:3.11.14-slim-bookworm", "prom/prometheus:v3.5.0"
BUILD_S, START_S, REQUEST_S = 900.0, 400.0, 120.0
GATEWAY_BYTES = 250_000_000


@dataclass
class Stack:
    """The running stack, and how to talk to it."""

    docker: Docker
    folder: Path
    gateway: str
    prometheus: str

    def compose(self, *command: str, timeout_s: float = START_S) -> str:
        """docker-compose in the copy of the repository."""
        return self.docker.run("docker-compose", *command, timeout_s=timeout_s, cwd=self.folder)

    def container(self, service: str) -> str:
        """A service's container."""
        return self.compose("ps", "-q", service).strip()

    def inspect(self, service: str, what: str) -> str:
        """A field of a service's container."""
        return self.docker.run("docker", "inspect", "--format", what, self.container(service)).strip()

    @property
    def client(self) -> openai.OpenAI:
        """The real client, without its own retries."""
        return openai.OpenAI(base_url=f"{self.gateway}/v1", api_key="any", max_retries=0, timeout=REQUEST_S)

    def query(self, expression: str) -> list[dict[str, object]]:
        """What Prometheus answers."""
        address = f"{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as response:
            return list(json.load(response)["data"]["result"])


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker engine; without one this is skipped, but not where CI asks for it."""
    try:
        with docker_engine(tmp_path_factory.mktemp("docker")) as engine:
            yield engine
    except NoDocker as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no Docker engine: {reason}")
        pytest.skip(f"no Docker engine: {reason}")


def copy_sources(folder: Path) -> None:
    """What git knows of the repository, and what is new in it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def fill_wheelhouse(folder: Path) -> None:
    """All wheels, by whatever index this machine's pip knows: the builds then need none, and no image gets CUDA packages."""
    get_wheels = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    torch = subprocess.run([*get_wheels, "torch==2.13.0+cpu"], capture_output=True)
    if torch.returncode:
        subprocess.run([*get_wheels, "torch==2.13.0"], check=True)
    subprocess.run([*get_wheels, "--requirement", "requirements/cpu.txt"], cwd=ROOT, check=True)


def import_bases(docker: Docker, folder: Path) -> None:
    have = docker.run("docker", "images", "--format", "{{.Repository}}:{{.Tag}}").split()
    if PYTHON_IMAGE not in have:
        import_base(docker, folder / "python", PYTHON_IMAGE, "python3,python3-dev,python3-venv")
    if PROMETHEUS_IMAGE not in have:
        changes = ('ENTRYPOINT ["/usr/bin/prometheus"]', "USER 65534:65534")
        import_base(docker, folder / "prometheus", PROMETHEUS_IMAGE, "prometheus,wget", *changes)


@pytest.fixture(scope="module")
def stack(docker: Docker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Images built, stack up, ready."""
    folder = tmp_path_factory.mktemp("stack")
    sources, pico = folder / "understudy", folder / "pico"
    copy_sources(sources)
    fill_wheelhouse(sources / "docker" / "wheelhouse")
    import_bases(docker, folder)
    write_pair(pico)
    pico.chmod(0o755)
    for parent in (folder, folder.parent):
        parent.chmod(0o755)
    ports = [choose_port(None), choose_port(None)]
    settings = {
        "PAIR": pico / "pair", "MODEL": pico / "model", "GATEWAY_PORT": ports[0], "PROMETHEUS_PORT": ports[1],
        "PIP_NO_INDEX": 1, "COMPOSE_PROJECT_NAME": "understudy-test",
    }  # fmt: skip
    (sources / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    stack = Stack(docker, sources, f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
    try:
        stack.compose("build", "gateway", "engine", "builder", timeout_s=BUILD_S)
        began_s = time.monotonic()
        stack.compose("up", "--detach", "prometheus")
        wait_for("ready", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)
        print(f"ready {time.monotonic() - began_s:.0f} s after `up` on built images")
        yield stack
    except BaseException:
        print(stack.compose("logs", "--tail", "60", "engine", "gateway"))
        raise
    finally:
        stack.compose("down", "--volumes", "--timeout", "5")
        left = docker.run(
            "docker", "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=understudy-test"
        )
        assert left == ""


def ask(stack: Stack, seed: int, max_tokens: int = 32) -> str:
    answer = stack.client.completions.create(
        model="pico", prompt=f"w{seed} w7 w11", max_tokens=max_tokens, temperature=1, seed=seed
    )
    return answer.choices[0].text


def test_the_gateway_image_is_small_and_has_no_torch(stack: Stack) -> None:
    sizes = [
        int(stack.docker.run("docker", "image", "inspect", "--format", "{{.Size}}", image))
        for image in ("understudy-gateway:0.1.0", PYTHON_IMAGE)
    ]
    print(f"gateway: {(sizes[0] - sizes[1]) / 1e6:.0f} MB beyond its base")
    assert sizes[0] - sizes[1] < GATEWAY_BYTES
    found = "import importlib.util as u; print([n for n in ('torch', 'transformers', 'vllm') if u.find_spec(n)])"
    assert stack.compose("exec", "-T", "gateway", "python", "-c", found).strip() == "[]"


def test_nobody_is_root_and_roots_are_read_only(stack: Stack) -> None:
    for service in ("gateway", "engine"):
        assert stack.compose("exec", "-T", service, "id", "-u").strip() == "10001"
        with pytest.raises(AssertionError, match="Read-only file system"):
            stack.compose("exec", "-T", service, "sh", "-c", "echo > /srv/x")


def test_the_engine_cannot_be_reached_from_outside_nor_reach_out(stack: Stack) -> None:
    assert "8001/tcp" not in stack.inspect("engine", "{{json .HostConfig.PortBindings}}")
    out = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    with pytest.raises(AssertionError, match=r"unreachable|timed out"):
        stack.compose("exec", "-T", "engine", "python", "-c", out)


def test_the_builder_leaves_a_pair_that_is_there_alone(stack: Stack) -> None:
    assert "/pair/pair is there" in stack.compose("logs", "builder")


def test_answers_come_and_their_acceptance_is_in_prometheus(stack: Stack) -> None:
    assert [model.id for model in stack.client.models.list()] == ["pico"]
    for seed in range(8):
        assert ask(stack, seed)
    streamed = stack.client.completions.create(model="pico", prompt="w1 w2", max_tokens=16, stream=True, temperature=0)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices)
    wait_for("a scrape after the answers", lambda: stack.query("sum(understudy_drafts_total) > 0"), 30)
    for name in sorted(OF_THE_ENGINE):
        assert stack.query(name), name
    end_s = time.monotonic() + 90
    while not stack.query("understudy:acceptance_rate:rate5m") and time.monotonic() < end_s:
        ask(stack, int(end_s - time.monotonic()))  # rates need counters that grow between two scrapes
        time.sleep(3)
    rate = float(stack.query("understudy:acceptance_rate:rate5m")[0]["value"][1])  # type: ignore[index]
    assert 0 < rate < 1


def test_every_panel_has_something_to_show(stack: Stack) -> None:
    expressions = {
        target["expr"]
        for board in BOARDS
        for panel in json.loads(board.read_text())["panels"]
        for target in panel["targets"]
    }
    chat = stack.client.completions
    for seed in range(4):
        list(chat.create(model="pico", prompt="w3", max_tokens=24, stream=True, seed=seed, temperature=1))
    deadline = time.monotonic() + 60
    while (empty := [one for one in expressions if not stack.query(one)]) and time.monotonic() < deadline:
        ask(stack, len(empty))
        list(chat.create(model="pico", prompt="w5 w6", max_tokens=24, stream=True, temperature=0))
        time.sleep(3)
    assert empty == []


def test_an_engine_that_dies_comes_back(stack: Stack) -> None:
    # As the kernel does it for want of memory; Docker takes `docker kill` for meant and starts nothing after it.
    process = int(stack.inspect("engine", "{{.State.Pid}}"))
    began_s = time.monotonic()
    os.kill(process, 9)
    wait_for("not ready", lambda: get(f"{stack.gateway}/ready")[0] == 503)
    with pytest.raises(openai.APIStatusError) as refused:
        ask(stack, 1)
    assert refused.value.status_code in (502, 503)
    wait_for("ready again", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)
    print(f"ready again {time.monotonic() - began_s:.0f} s after the engine died")
    assert int(stack.inspect("engine", "{{.RestartCount}}")) == 1
    assert ask(stack, 2)


def test_a_stop_under_load_loses_nothing(stack: Stack) -> None:
    answers: list[int] = []
    refusals: list[int] = []
    broken: list[str] = []
    asked, leaving = threading.Event(), threading.Event()

    def client(number: int) -> None:
        for turn in range(200):
            if leaving.is_set():
                return
            try:
                text = ask(stack, 10 * turn + number, max_tokens=64)
                answers.append(len(text))
                asked.set()
            except openai.APIStatusError as error:  # told to come again: nothing is lost
                (refusals if error.status_code == 503 else broken).append(error.status_code)  # type: ignore[arg-type]
            except openai.APIConnectionError as error:
                if "refused" not in str(error.__cause__):  # nobody listens any more: not taken, so not lost either
                    broken.append(repr(error.__cause__))
                return

    clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for one in clients:
        one.start()
    assert asked.wait(REQUEST_S)
    stack.compose("stop")
    leaving.set()
    for one in clients:
        one.join(REQUEST_S)
    log = stack.compose("logs", "--no-color", "gateway")
    print(f"{len(answers)} answers, {len(refusals)} refusals, {broken}")
    assert broken == []
    assert answers
    assert all(answers)
    assert int(stack.inspect("gateway", "{{.State.ExitCode}}")) == 0
    ended = [stack.inspect(service, "{{.State.FinishedAt}}") for service in ("gateway", "engine")]
    assert ended[0] < ended[1], log[-2000:]
