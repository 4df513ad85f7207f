"""`docker compose up` on a real Docker engine, as far as a machine without a registry allows; the tests go on from each other.

Base images are made of Debian's packages, Prometheus is Debian's, Grafana is left out, and the pair is a pico pair. Everything
else is what a user gets: images, compose files, networks, health checks, the order in which things start and end.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.deploy.stack import PROJECT, REQUEST_S, START_S, STARTED, TAKEN_IN, Stack, made_key, parts
from tests.deploy.stand_in import PYTHON_IMAGE
from tests.integration.conftest import get, wait_for
from tests.unit.docker.test_observability import BOARDS, OF_THE_ENGINE

GATEWAY_BYTES = 250_000_000
KEEPER_S = 5.0
"""Longer than the keeper waits."""
NOT_TAKEN = "not taken"
LEAVE_S = 2.0
"""As in docker/gateway/one.yaml."""


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
    assert [model.id for model in stack.client().models.list()] == ["pico"]
    assert all(stack.ask(seed) for seed in range(8))
    assert stack.stream(2, max_tokens=16, temperature=0)
    wait_for("a scrape after the answers", lambda: stack.query("sum(understudy_drafts_total) > 0"), 30)
    for name in sorted(OF_THE_ENGINE):
        assert stack.query(name), name
    wait_while_asking(stack, lambda: stack.query("understudy:acceptance_rate:rate5m"))
    rate = float(stack.query("understudy:acceptance_rate:rate5m")[0]["value"][1])  # type: ignore[index]
    assert 0 < rate < 1


def test_every_panel_has_something_to_show(stack: Stack) -> None:
    expressions = {
        target["expr"]
        for board in BOARDS
        for panel in json.loads(board.read_text())["panels"]
        for target in panel["targets"]
    }
    empty = expressions

    def shown() -> bool:
        nonlocal empty
        empty = {one for one in empty if not stack.query(one)}
        return not empty

    wait_while_asking(stack, shown)
    assert not empty


def wait_while_asking(stack: Stack, shown: Callable[[], object], timeout_s: float = 120) -> None:
    """Rates and recording rules need counters that grow between two scrapes."""
    deadline = time.monotonic() + timeout_s
    for seed in range(10_000):
        if shown() or time.monotonic() > deadline:
            return
        stack.ask(seed)
        stack.stream(seed)
        stack.stream(seed, temperature=0)
        time.sleep(1)


@dataclass
class Seen:
    """How the requests of some clients ended, and when those began that nobody answered."""

    ends: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, float] = field(default_factory=dict)


@contextmanager
def clients(stack: Stack, number: int = 4) -> Iterator[Seen]:
    """Clients that ask all the time, half of them for streams; their requests' names come once in the gateway's log."""
    seen, leaving, begun_s = Seen(), threading.Event(), round(time.time())

    def client(which: int) -> None:
        for turn in range(100_000):
            if leaving.is_set():
                return
            name, began_s = f"{begun_s}-turn-{turn}-of-{which}", time.time()
            ended = outcome(partial(stack.stream if which % 2 else stack.ask, 10 * turn + which, 64, name))
            seen.ends[ended] += 1
            if ended == NOT_TAKEN:
                seen.unanswered[name] = began_s
            if ended != "answered":
                leaving.wait(0.3)

    asking = [threading.Thread(target=client, args=(which,)) for which in range(number)]
    for one in asking:
        one.start()
    try:
        wait_for("answers", lambda: seen.ends["answered"] > 8, REQUEST_S)
        yield seen
    finally:
        leaving.set()
        for one in asking:
            one.join(REQUEST_S)


def outcome(ask: Callable[[], str]) -> str:
    """How a request ended, for its client."""
    try:
        return "answered" if ask() else "empty"
    except openai.APIStatusError as error:
        return str(error.status_code)
    except openai.APIConnectionError as error:  # Docker's own proxy takes connections for a while when nobody else does
        cause = str(error.__cause__)
        return NOT_TAKEN if "refused" in cause or "without sending a response" in cause or "reset" in cause else cause
    except openai.APIError:
        return "error in the stream"
    except httpx.HTTPError as error:
        return f"cut: {error!r}"


def test_an_engine_that_dies_comes_back_without_a_hand(stack: Stack, figures: dict[str, Any]) -> None:
    with clients(stack) as seen:
        process = int(stack.inspect("engine", "{{.State.Pid}}"))
        began_s = time.time()
        os.kill(process, 9)  # as the kernel does it for want of memory
        marks = came_back(stack, began_s)
    figures["recovery_s"], figures["seen_by_clients"] = parts(marks), dict(seen.ends)
    print(f"engine died: {figures['recovery_s']}, clients saw {dict(seen.ends)}")
    assert int(stack.inspect("engine", "{{.RestartCount}}")) == 1
    assert stack.ask(2)
    assert seen.ends.keys() <= {"answered", "503", "error in the stream"}


def came_back(stack: Stack, began_s: float) -> dict[str, float]:
    """Waits until the engine serves again; the moments on the way."""
    wait_for("not ready", lambda: get(f"{stack.gateway}/ready")[0] == 503)
    wait_for("ready again", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)
    ready_s = time.time()
    return {
        "": began_s,
        "container": stack.started_s("engine"),
        "engine": stack.said_s("engine", STARTED, began_s),
        "gateway and sampling check": stack.said_s("gateway", TAKEN_IN, began_s),
        "ready": ready_s,
    }


def test_with_keys_nobody_is_served_without_one(stack: Stack, secrets: Path) -> None:
    stack.key = made_key(secrets)
    forms = ("compose.yaml", "docker/compose.keys.yaml", "docker/compose.keeper.yaml")
    stack.configure(COMPOSE_FILE=":".join(forms), DOCKER_SOCKET=stack.docker.socket)
    stack.compose("up", "--detach", "--no-deps", "gateway", "keeper")  # docker-compose 1.29 would make the engine anew
    wait_for("ready with keys", lambda: get(f"{stack.gateway}/ready")[0] == 200, START_S)
    with pytest.raises(openai.AuthenticationError):
        stack.client(api_key="sk-another").models.list()
    assert stack.ask(1)
    assert stack.key not in stack.inspect("gateway", "{{json .Config}}")
    assert stack.key not in stack.compose("logs", "gateway")


def test_with_the_keeper_an_engine_comes_back_after_docker_kill(stack: Stack, figures: dict[str, Any]) -> None:
    container = stack.container("engine")
    with clients(stack) as seen:
        began_s = time.time()
        stack.docker.run("docker", "kill", container)
        marks = came_back(stack, began_s)
    figures["recovery_after_docker_kill_s"], figures["seen_at_docker_kill"] = parts(marks), dict(seen.ends)
    print(f"docker kill: {figures['recovery_after_docker_kill_s']}, clients saw {dict(seen.ends)}")
    assert seen.ends.keys() <= {"answered", "503", "error in the stream"}
    assert stack.ask(3)
    stack.compose("stop", "prometheus")
    time.sleep(KEEPER_S)
    assert stack.inspect("prometheus", "{{.State.Running}}") == "false"
    assert re.findall(r"keeper: (\S+) was killed", stack.compose("logs", "keeper")) == [f"{PROJECT}_engine_1"]


def test_a_stop_under_load_loses_nothing(stack: Stack, figures: dict[str, Any]) -> None:
    with clients(stack) as seen:
        began_s = time.monotonic()
        stack.compose("stop")
        figures["stop_s"] = round(time.monotonic() - began_s, 1)
    figures["seen_at_stop"] = dict(seen.ends)
    print(f"stopped in {figures['stop_s']} s, clients saw {dict(seen.ends)}")
    assert seen.ends.keys() <= {"answered", "503", NOT_TAKEN}
    assert int(stack.inspect("gateway", "{{.State.ExitCode}}")) == 0
    log = stack.compose("logs", "--no-color", "gateway")
    closing_s = stack.said_s("gateway", "not ready any more", 0) + LEAVE_S
    for name, began_s in seen.unanswered.items():  # begun when it took nothing more, and never taken
        assert began_s > closing_s
        assert name not in log
    ended = [stack.inspect(service, "{{.State.FinishedAt}}") for service in ("gateway", "engine")]
    assert ended[0] < ended[1]
