"""The load generator as it is used: in processes of its own, against replaying engines on loopback."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from loadtests.ceiling import Ceiling
from loadtests.figures import Result
from loadtests.prompts import read_prompts
from loadtests.report import html, warning
from loadtests.running import carry_out, loadtest, record_of
from loadtests.schedule import requests_for, turns_of
from loadtests.settings import PROMPTS, LoadSettings, Shape
from loadtests.thresholds import check, parse_threshold
from loadtests.worker import decode, encode, in_turn
from stages.errors import CheckFailed, InputError
from tests.unit.loadtests.asking import drafted, outcome
from tests.unit.server.answers import BODY, DONE, ONE, ROLE, TWO, USAGE
from tests.unit.server.replay import Replay, chunked, whole
from understudy import app

ROOT = Path(__file__).resolve().parents[3]
STREAMED = chunked([ROLE, ONE, TWO, USAGE, DONE])
needs_locust = pytest.mark.skipif(
    importlib.util.find_spec("locust") is None and not os.environ.get("CI"), reason="locust is not installed"
)


class Engine(Replay):
    """Answers as asked, streamed or whole."""

    def pieces_for(self, body: bytes) -> list[bytes]:
        if not body:
            return whole(b'{"data": [{"id": "mine"}]}')
        return STREAMED if json.loads(body).get("stream") else whole(BODY)

    def bodies(self) -> list[dict]:
        return [json.loads(body) for _, _, body in self.requests if body]


LOCUSTFILE = ROOT / "loadtests" / "locustfile.py"
LISTENS = """
import json

from locust import events

from loadtests.locustfile import Mixed, Scheduled


@events.init.add_listener
def listen(environment, **_):
    sink = open("measured.jsonl", "w", buffering=1)

    def write(name, figure, value, outcome):
        sink.write(json.dumps([name, figure, value, outcome.place]) + "\\n")

    environment.events.measured.add_listener(write)
"""
"""A locustfile of one's own, on top of ours."""


def headless(folder: Path, settings: str, *users: str, file: Path = LOCUSTFILE) -> tuple[int, Engine]:
    """Runs locust as docs/loadtests.md says, against an engine that replays; outcomes are left in records.jsonl."""
    (folder / "load.yaml").write_text(settings)
    options = ["--headless", "--only-summary", "--load-settings", "load.yaml", "--records", "records.jsonl", *users]

    async def run() -> tuple[int, Engine]:
        async with Engine().running() as engine:
            assert isinstance(engine, Engine)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "locust", "-f", str(file), "--host", engine.url, *options,
                cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            return await child.wait(), engine

    return asyncio.run(run())


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@needs_locust
def test_locust_sends_the_schedule_headless(tmp_path: Path) -> None:
    code, engine = headless(
        tmp_path,
        "loop: open\nstream: 0.5\nshape: {kind: burst, level: 5, to: 30, every_s: 1, burst_s: 0.5, duration_s: 1.2}\n",
    )
    assert code == 0
    shape = Shape(kind="burst", level=5, to=30, every_s=1, burst_s=0.5, duration_s=1.2)
    settings = LoadSettings(loop="open", stream=0.5, shape=shape)
    expected = requests_for(settings, read_prompts(PROMPTS), "open", shape, "locust")
    assert len(expected) > 5
    key = "seed"
    assert sorted(engine.bodies(), key=lambda body: body[key]) == sorted(
        (request.body("mine") for request in expected), key=lambda body: body[key]
    )
    found = records(tmp_path)
    assert sorted(record["due_s"] for record in found) == pytest.approx([request.at_s for request in expected])
    assert {record["error"] for record in found} == {""}


CLOSED = "stream: 0.5\nmax_requests: 8\n"


@needs_locust
def test_one_user_of_a_closed_loop_sends_all_sorts_in_their_order_and_what_was_measured_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LISTENS)
    code, engine = headless(tmp_path, CLOSED, file=tmp_path / "mine.py")
    assert code == 0
    settings = LoadSettings(stream=0.5, max_requests=8)
    expected = requests_for(settings, read_prompts(PROMPTS), "closed", Shape(), "locust")
    assert len({request.name for request in expected}) > 1
    assert engine.bodies() == [request.body("mine") for request in expected]
    assert [record["place"] for record in records(tmp_path)] == list(range(8))
    told = [json.loads(line) for line in (tmp_path / "measured.jsonl").read_text().splitlines()]
    streamed = {request.place for request in expected if request.stream}
    for figure in ("ms to first token", "ms per output token", "ms between chunks"):
        assert {place for _, one, _, place in told if one == figure} == streamed, figure
    accepted = {record["place"] for record in records(tmp_path) if record["speculation"]}
    assert accepted >= streamed
    assert {place for _, one, _, place in told if one == "% accepted"} == accepted
    assert all(name == expected[place].name and value >= 0 for name, _, value, place in told)


@needs_locust
def test_locusts_web_page_starts_the_same_requests_each_time(tmp_path: Path) -> None:
    (tmp_path / "load.yaml").write_text(CLOSED)

    async def run() -> tuple[str, Engine]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        page = f"http://127.0.0.1:{port}"
        async with Engine().running() as engine, aiohttp.ClientSession() as browser, asyncio.timeout(90):
            assert isinstance(engine, Engine)
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--host", engine.url, "--load-settings", "load.yaml",
                "--web-host", "127.0.0.1", "--web-port", str(port),
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                text = await answered(browser, page)
                for begun in (1, 2):
                    async with browser.post(f"{page}/swarm", data={"user_count": "1", "spawn_rate": "1"}) as started:
                        assert (await started.json())["success"]
                    await until_stopped(browser, page, lambda most=8 * begun: len(engine.bodies()) == most)
            finally:
                child.terminate()
                await child.wait()
            return text, engine

    async def until_stopped(browser: aiohttp.ClientSession, page: str, sent: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(0.1)
            async with browser.get(f"{page}/stats/requests") as response:
                if (await response.json())["state"] == "stopped" and sent():
                    return

    async def answered(browser: aiohttp.ClientSession, page: str) -> str:
        while True:
            try:
                async with browser.get(page) as response:
                    return await response.text()
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.1)

    text, engine = asyncio.run(run())
    assert "<title>Locust</title>" in text
    settings = LoadSettings(stream=0.5, max_requests=8)
    expected = requests_for(settings, read_prompts(PROMPTS), "closed", Shape(), "locust")
    assert engine.bodies() == [request.body("mine") for request in expected] * 2


@needs_locust
def test_users_that_are_named_send_their_sort_only(tmp_path: Path) -> None:
    code, engine = headless(tmp_path, CLOSED, "ChatWhole")
    expected = requests_for(
        LoadSettings(stream=0.5, max_requests=8), read_prompts(PROMPTS), "closed", Shape(), "locust"
    )
    assert code == 0
    assert engine.bodies() == [request.body("mine") for request in expected if request.name == "chat whole"]
    assert engine.bodies()


@needs_locust
def test_users_who_take_everything_leave_nothing_for_named_sorts(tmp_path: Path) -> None:
    code, engine = headless(tmp_path, CLOSED, "Mixed", "ChatWhole")
    assert code == InputError.exit_code
    assert not engine.bodies()


@needs_locust
def test_half_a_user_is_one() -> None:
    steps = Shape(kind="step", level=0.5, to=0.5, every_s=2)
    settings = LoadSettings(users=(), rates=(), shape=steps, max_requests=2)

    async def run() -> list[Result]:
        async with Engine().running() as engine:
            return await asyncio.wait_for(asyncio.to_thread(carry_out, settings, {"plain": engine.url}), 60)

    (found,) = asyncio.run(run())
    assert [one.place for one in found.outcomes] == [0, 1]


@pytest.fixture(scope="module")
def compared() -> tuple[LoadSettings, list[Result], list[list[dict]]]:
    """Two engines asked in turns, by one load generator."""
    ramp = Shape(kind="ramp", level=1, to=2, duration_s=60)  # its requests end it
    settings = LoadSettings(
        users=(2,), rates=(30,), turns=2, turn_s=0.3, requests_per_turn=4, shape=ramp, max_requests=12
    )

    async def run() -> tuple[list[Result], list[list[dict]]]:
        async with Engine().running() as plain, Engine().running() as draft:
            urls = {"plain": plain.url, "draft": draft.url}
            results = await asyncio.to_thread(carry_out, settings, urls)
            return results, [engine.bodies() for engine in (plain, draft) if isinstance(engine, Engine)]

    return settings, *asyncio.run(run())


@needs_locust
def test_both_are_asked_the_same_in_turns(compared: tuple[LoadSettings, list[Result], list[list[dict]]]) -> None:
    settings, results, (plain, draft) = compared
    turns = turns_of(settings, read_prompts(PROMPTS))
    order = [(turn.condition, turn.number, name) for turn in turns for name in in_turn(["plain", "draft"], turn.number)]
    assert [(r.condition, r.number, r.target) for r in results] == order
    assert sorted(plain, key=str) == sorted(draft, key=str)
    assert len(plain) == sum(len(turn.requests) for turn in turns)
    assert all(not o.error for r in results for o in r.outcomes)
    opened = [r for r in results if r.loop == "open"]
    due = {r.target: sorted(o.due_s for o in r.outcomes) for r in opened if r.number == 0}
    assert (
        due["plain"]
        == due["draft"]
        == pytest.approx([q.at_s for t in turns if t.loop == "open" and not t.number for q in t.requests])
    )


@needs_locust
def test_what_is_written_says_all(compared: tuple[LoadSettings, list[Result], list[list[dict]]]) -> None:
    settings, results, _ = compared
    record = json.loads(json.dumps(record_of(results, settings, Ceiling(1e9, 1e9))))
    assert record["generator"]["publishable"]
    page = html(record)
    assert "Not publishable" not in page
    assert page.count("<img") == 5
    assert "http://" not in page
    check(record["rows"], [parse_threshold("errors>0")], "draft")
    with pytest.raises(CheckFailed):
        check(record["rows"], [parse_threshold("requests_per_s<1e9")], "draft")
    crowded = record_of(results, settings, Ceiling(1e9, 1.0))
    assert "more than 50%" in warning(crowded)
    assert "ceiling was not measured" in warning(record_of(results, settings, None))


def test_what_had_ended_when_it_was_interrupted_is_written(
    compared: tuple[LoadSettings, list[Result], list[list[dict]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, results, _ = compared

    def interrupted(_settings: object, _targets: object, _keys: object, keep: Callable[[Result], None]) -> None:
        for result in results[:1]:
            keep(result)
        raise KeyboardInterrupt

    monkeypatch.setattr("loadtests.running.carry_out", interrupted)
    monkeypatch.setattr("loadtests.running.ceiling.at_hand", lambda: False)
    out = tmp_path / "load.json"
    with pytest.raises(KeyboardInterrupt):
        loadtest({"plain": "http://127.0.0.1:1"}, settings, out)
    assert not out.exists(), "an earlier whole result stays"
    file = tmp_path / "load-interrupted.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["complete"], len(record["rows"])) == (False, 1)
    assert "it was interrupted" in warning(record)
    assert "it was interrupted" in file.with_suffix(".html").read_text(encoding="utf-8")


def test_the_load_of_requests_and_chunks_adds_up() -> None:
    assert Ceiling(100, 1000).share(25, 250) == 0.5


def test_a_result_survives_its_line() -> None:
    outcomes = (outcome(chunk_s=(0.1, 0.2)), drafted(1, 2, 3, 4), outcome(2, error="HTTP 500"))
    result = Result("draft", "closed-4", "closed", 4, 1, 2.5, outcomes)
    assert decode(encode(result)) == result


def test_no_patch_of_gevents_comes_in_here() -> None:
    assert not {"gevent", "locust"} & set(sys.modules)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a pair, or --url"),
        (["pair", "--url", "http://127.0.0.1:1"], "give a pair, or --url"),
        (["pair", "--url-draft", "http://127.0.0.1:1"], "give a pair, or --url"),
        (["--url", "http://127.0.0.1:1", "--fail-if", "godput<1"], "did you mean 'goodput'"),
        (["--url", "http://127.0.0.1:1", "--set", "user=[1]"], "did you mean 'users'"),
        (
            ["--url", "http://127.0.0.1:1", "--set", "tenants=[{name: a, key_env: NOT_SET_HERE}]"],
            "NOT_SET_HERE is not set",
        ),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(arguments: list[str], said: str) -> None:
    error = CliRunner().invoke(app, ["loadtest", *arguments]).exception
    assert isinstance(error, InputError)
    assert said in str(error)
