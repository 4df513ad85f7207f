"""One Docker engine and one stack for all tests here; figures of the run are left in build/deploy/figures.json."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks.gateway import hardware
from benchmarks.gateway_proxies import revision
from server.engine import choose_port
from tests.deploy.docker_engine import Docker, NoDocker, docker_engine, install
from tests.deploy.stack import PROJECT, START_S, STARTED, TAKEN_IN, Stack, parts
from tests.deploy.stand_in import KEPT, copy_sources, import_bases, supplies, write_pair
from tests.integration.conftest import get, wait_for

BUILD_S = 900.0


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A Docker engine; without one this is skipped, but not where CI asks for it."""
    try:
        with docker_engine(tmp_path_factory.mktemp("docker")) as engine:
            yield engine
    except NoDocker as reason:
        leave_out(f"no Docker engine: {reason}")


@pytest.fixture(scope="session")
def promtool() -> None:
    """Debian's promtool; without it this is skipped, but not where CI asks for it."""
    try:
        install()
    except NoDocker as reason:
        leave_out(f"no promtool: {reason}")


@pytest.fixture(scope="session")
def chromium() -> None:
    """Debian's Chromium, likewise."""
    try:
        install({"chromium": "chromium"})
    except NoDocker as reason:
        leave_out(f"no Chromium: {reason}")


def leave_out(reason: str) -> NoReturn:
    """Skips what cannot be run here; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def figures(docker: Docker) -> Iterator[dict[str, Any]]:
    """What the tests measured; none of it decides over a test."""
    found: dict[str, Any] = {"docker": docker.run("docker", "version", "--format", "{{.Server.Version}}").strip()}
    yield found
    found |= {"hardware": hardware(), "revision": revision(), "date": datetime.now(UTC).date().isoformat()}
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{KEPT / 'figures.json'}: {json.dumps(found)}")


@pytest.fixture(scope="session")
def built(docker: Docker, figures: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """Images built of this checkout, and the settings of a stack that serves a pico pair."""
    folder = tmp_path_factory.mktemp("stack")
    marks = {"": time.time()}
    found = supplies()
    marks["wheels and base system"] = time.time()
    copy_sources(folder / "understudy", found.wheels)
    import_bases(docker, found.python, folder)
    marks["base images"] = time.time()
    write_pair(folder / "pico")
    for shown in (folder / "pico", folder, folder.parent):
        shown.chmod(0o755)
    ports = [choose_port(None), choose_port(None)]
    gateway, prometheus = (f"http://127.0.0.1:{port}" for port in ports)
    stack = Stack(docker, folder / "understudy", gateway, prometheus)
    stack.configure(
        PAIR=folder / "pico" / "pair", MODEL=folder / "pico" / "model", GATEWAY_PORT=ports[0], PROMETHEUS_PORT=ports[1],
        PIP_NO_INDEX=1, COMPOSE_PROJECT_NAME=PROJECT,
    )  # fmt: skip
    stack.compose("build", "gateway", "engine", "builder", timeout_s=BUILD_S)
    for wheel in (stack.folder / "docker" / "wheelhouse").glob("*.whl"):
        wheel.unlink()
    marks["images"] = time.time()
    figures["preparation_s"] = parts(marks)
    return stack


@pytest.fixture(scope="session")
def stack(built: Stack, figures: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The stack, up and ready; its containers' last words where a test failed."""
    try:
        figures["first_answer_s"] = parts(bring_up(built))
        yield built
    finally:
        if request.session.testsfailed or "first_answer_s" not in figures:
            print(built.compose("logs", "--tail", "60"))
        take_down(built)


def bring_up(stack: Stack) -> dict[str, float]:
    """``up`` until a client has its answer; the moments on the way."""
    began_s = time.time()
    stack.compose("up", "--detach", "prometheus")
    wait_for("ready", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)
    assert stack.ask(0)
    answered_s = time.time()
    return {
        "": began_s,
        "containers": stack.started_s("engine"),
        "engine": stack.said_s("engine", STARTED, began_s),
        "health check and gateway's start": stack.started_s("gateway"),
        "gateway and sampling check": stack.said_s("gateway", TAKEN_IN, began_s),
        "first answer": answered_s,
    }


def take_down(stack: Stack) -> None:
    """Containers, networks and volumes gone."""
    stack.compose("down", "--volumes", "--timeout", "5")
    for kind in ("container", "network", "volume"):
        project = stack.settings["COMPOSE_PROJECT_NAME"]
        of_ours = ("ls", "--quiet", "--filter", f"label=com.docker.compose.project={project}")
        assert stack.docker.run("docker", kind, *of_ours, *(("--all",) if kind == "container" else ())) == "", kind


@pytest.fixture
def secrets(stack: Stack) -> Path:
    """Where the secrets of compose.keys.yaml lie."""
    return stack.folder / "docker" / "secrets"
