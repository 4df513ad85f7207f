"""`serve` as a process of its own, with a stand-in for the engine; signals are real."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.background import background_gateway
from server.engine import LocalEngine, bind
from server.run import Service, loop_factory
from server.settings import GatewaySettings
from stages.errors import CheckFailed, EngineError
from tests.unit.server import test_sampling_check as samplers
from tests.unit.server.test_engine import DYING, HEALTHY, gone, lives, settings
from tests.unit.server.test_pair import checkpoint

SERVE = """
import sys
from pathlib import Path
from server.engine import LocalEngine
from server.pair import read_pair
from server.run import serve
from server.settings import GatewaySettings
from stages.errors import UnderstudyError

folder = Path(sys.argv[1])
def stand_in(settings):
    return LocalEngine(settings.model_copy(update={"python": folder / "python", "stop_grace_s": 0.2}))
try:
    serve(GatewaySettings(port=0), read_pair(folder), folder / "engine.log", make_engine=stand_in)
except UnderstudyError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""

SERVE_ELSEWHERE = """
import json
import sys
from server.run import serve
from server.settings import GatewaySettings
from stages.errors import UnderstudyError

where = {"engines": json.loads(sys.argv[1])} if sys.argv[1].startswith("[") else {"engine_url": sys.argv[1]}
try:
    serve(GatewaySettings(port=0, engine_api_key="ours", **where))
except UnderstudyError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""

Serve = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "health").write_text("")
    target = {"path": "target", **checkpoint(tmp_path / "target", b"t")}
    serving = {"schema_version": 1, "served_model_name": "m", "target": target, "max_model_len": 8}
    (tmp_path / "serving.json").write_text(json.dumps(serving))
    started = []

    def start(script: str) -> subprocess.Popen[str]:
        (tmp_path / "python").write_text(script.format(folder=tmp_path, python=sys.executable))
        (tmp_path / "python").chmod(0o755)
        arguments = [sys.executable, "-c", SERVE, str(tmp_path)]
        started.append(subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def wait_for_line(process: subprocess.Popen[str], word: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return line
    pytest.fail(f"ended without saying {word!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_gateway_and_engine(serve: Serve, tmp_path: Path, number: signal.Signals) -> None:
    process = serve(HEALTHY)
    wait_for_line(process, "gateway: ready")
    child = int((tmp_path / "child").read_text())
    assert lives(child)
    process.send_signal(number)
    assert process.wait(20) == 0
    assert gone(child)


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="no uvloop here: asyncio's own loop is used")
def test_it_runs_on_uvloop_where_there_is_one(serve: Serve) -> None:
    process = serve(HEALTHY)
    wait_for_line(process, "gateway: ready")
    assert "uvloop" in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_its_loop_sends_small_pieces_at_once() -> None:
    """Nagle's algorithm is off at the gateway's end of a connection, whichever loop it is."""

    async def connected() -> int:
        found = asyncio.get_running_loop().create_future()

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with bind("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(accept, sock=listening):
                _, client = await asyncio.open_connection(*listening.getsockname())
                client.close()
                return await found

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        assert runner.run(connected()) != 0


def test_a_signal_ends_it_while_the_engine_is_starting(serve: Serve, tmp_path: Path) -> None:
    process = serve("#!/bin/sh\necho $$ > {folder}/child\nexec sleep 300\n")
    url = wait_for_line(process, "gateway: http").split()[1]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/ready")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert gone(int((tmp_path / "child").read_text()))


def test_an_engine_that_dies_ends_it_with_one_clear_error(serve: Serve) -> None:
    process = serve(DYING)
    assert "exit code 7" in wait_for_line(process, "error:")
    assert process.wait(20) == 3


def test_an_engine_that_dies_later_ends_it_too(serve: Serve, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    process = serve(
        "#!/bin/sh\n{python} -m http.server -b 127.0.0.1 -d {folder}/www $6 &\nread x <{folder}/fifo; exit 5\n"
    )
    wait_for_line(process, "gateway: ready")
    (tmp_path / "fifo").write_text("now\n")
    assert "exit code 5 while serving" in wait_for_line(process, "error:")
    assert process.wait(20) == 3


@pytest.fixture
def serve_elsewhere() -> Iterator[Serve]:
    """`serve` in front of an engine at a URL, or of a list of engines as JSON, without a pair."""
    started = []

    def start(url: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen([sys.executable, "-c", SERVE_ELSEWHERE, url], stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_an_engine_elsewhere_is_checked_with_its_key(serve_elsewhere: Serve) -> None:
    with samplers.serve(samplers.Sampler(), api_key="ours") as url:
        process = serve_elsewhere(url)
        wait_for_line(process, "nominal false-alarm rate")
        wait_for_line(process, "gateway: ready")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_an_engine_elsewhere_that_samples_wrongly_is_refused(serve_elsewhere: Serve) -> None:
    with samplers.serve(samplers.Sampler(temperature_bug=0.01)) as url:
        process = serve_elsewhere(url)
        assert "does not sample" in wait_for_line(process, "error:")
        assert process.wait(20) == CheckFailed.exit_code


def test_a_check_that_cannot_be_made_says_what_to_do(serve_elsewhere: Serve) -> None:
    with samplers.serve(samplers.Sampler(), api_key="theirs") as url:
        process = serve_elsewhere(url)
        said = wait_for_line(process, "error:")
        assert "answered 401" in said
        assert "--model" in said
        assert process.wait(20) == EngineError.exit_code


def test_of_several_engines_those_serve_that_are_fit(serve_elsewhere: Serve) -> None:
    with samplers.serve(samplers.Sampler()) as fit, samplers.serve(samplers.Sampler(temperature_bug=0.01)) as unfit:
        named = {
            "unfit": (unfit, "model"),
            "misnamed": (fit.replace("127.0.0.1", "localhost"), "other"),
            "fit": (fit, "model"),
        }
        engines = [{"name": name, "url": url, "model": model, "draft": "d"} for name, (url, model) in named.items()]
        process = serve_elsewhere(json.dumps(engines))
        missing = {"engine fit: taken in after", "unfit: not taken in until it has been restarted: the engine at",
                   "misnamed: not taken in yet: it serves model, not other", "gateway: ready, serving model/d"}  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            missing -= {words for words in missing if words in line}
            if not missing:
                break
        assert not missing
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_a_signal_ends_it_while_an_engine_elsewhere_is_checked(serve_elsewhere: Serve) -> None:
    hold = threading.Event()
    sampler = samplers.Sampler()
    sampler.complete = lambda body: hold.wait(60) and {}  # type: ignore[method-assign, assignment]
    with samplers.serve(sampler) as url:
        process = serve_elsewhere(url)
        wait_for_line(process, "checking that sampling")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        hold.set()


def test_an_engine_that_dies_of_the_check_shows_its_last_lines(tmp_path: Path) -> None:
    engine = LocalEngine(settings(tmp_path, DYING))
    engine.start()
    service = Service(GatewaySettings(engine_url=engine.url), engine, check_sampling=True)
    with pytest.raises(EngineError, match=r"exit code 7 while its sampling was checked(.|\n)*no such model"):
        asyncio.run(service._check())
    engine.stop()


def test_an_engine_that_is_back_is_checked_with_fewer_samples() -> None:
    sampler, sizes = samplers.Sampler(), list[int]()
    answer = sampler.complete
    sampler.complete = lambda body: sizes.append(body["n"]) or answer(body)  # type: ignore[method-assign, func-returns-value]
    with samplers.serve(sampler) as url:
        entry = {"name": "a", "url": url, "model": "model", "draft": "d"}
        service = Service(GatewaySettings.model_validate({"engines": [entry]}), None, check_sampling=True)

        async def twice() -> None:
            for _ in range(2):
                await service._intake(service._settings.engines[0])

        asyncio.run(twice())
    assert sizes == [12] * 8 + [4] * 8


def test_a_gateway_in_the_background() -> None:
    with background_gateway("http://127.0.0.1:1", "m", "d") as url, urllib.request.urlopen(f"{url}/health") as answer:
        assert answer.status == 200
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/health")


def test_a_background_gateway_that_does_not_come_up() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway = background_gateway("http://127.0.0.1:1", "m", port=taken.getsockname()[1])
        with pytest.raises(EngineError, match="did not come up"):
            gateway.__enter__()
