"""Engines that are forked from one process, with Python's own modules in the place of an engine's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine import LocalEngine, answers, choose_port
from server.engine_command import EngineSettings
from server.in_engine.fork_server import DRAFTING
from server.launching import (
    UNKNOWN,
    ForkServer,
    Process,
    fork_server,
    launch_program,
    launch_single,
    shared_fork_server,
)
from stages.errors import EngineError

PROGRAM = (
    "-c",
    "import os; from server.in_engine import fork_server as f; f.SHARED = ()\n"
    "f.compile_beside = lambda: os.fork() or os._exit(0); f.main()",
)
LISTENING = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    made = ForkServer(tmp_path / "engines.log", PROGRAM)
    yield made
    made.stop()


def listen(server: ForkServer, folder: Path, name: str) -> tuple[Process, str]:
    """A forked process that answers /health, and where it does."""
    (folder / "health").write_text("")
    port = choose_port(None)
    process = server.launch([*LISTENING, str(folder), str(port)], {**os.environ, "NAME": name}, folder / f"{name}.log")
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 20
    while not answers(url) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process, url


def test_engines_are_processes_with_session_log_and_end_of_their_own(server: ForkServer, tmp_path: Path) -> None:
    (first, first_url), (second, second_url) = (listen(server, tmp_path, name) for name in ("first", "second"))
    assert answers(first_url)
    assert answers(second_url)
    assert first.pid != second.pid
    for process in (first, second):
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
        assert process.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert answers(second_url)
    assert "GET /health" in (tmp_path / "second.log").read_text()


def test_an_engine_gets_its_environment_and_arguments(server: ForkServer, tmp_path: Path) -> None:
    told = "import os; print(dict(os.environ))"
    arguments = [sys.executable, "-m", "timeit", "-n", "1", "-r", "1", told]
    assert server.launch(arguments, {"ONE": "1"}, tmp_path / "log").wait() == 0
    assert (tmp_path / "log").read_text().startswith("{'ONE': '1'}\n")


@pytest.mark.parametrize(("arguments", "code"), [(["json.tool", "--nonsense"], 2), (["this"], 0)])
def test_exit_codes(server: ForkServer, tmp_path: Path, arguments: list[str], code: int) -> None:
    process = server.launch([sys.executable, "-m", *arguments], dict(os.environ), tmp_path / "log")
    assert process.wait() == code
    assert process.poll() == code


def test_what_nobody_has_stopped_ends_with_it(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "engines.log", PROGRAM)
    _, url = listen(server, tmp_path, "left")
    server.stop()
    assert not answers(url)


def test_a_fork_server_that_cannot_import(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "engines.log", ("-c", "raise ImportError('libfoo.so is missing')"))
    with pytest.raises(EngineError, match=r"engines\.log"):
        server.launch([sys.executable, "-m", "this"], dict(os.environ), tmp_path / "log")
    server.stop()
    assert "libfoo.so is missing" in (tmp_path / "engines.log").read_text()


def test_a_fork_server_that_was_killed(tmp_path: Path) -> None:
    server = ForkServer(tmp_path / "engines.log", PROGRAM)
    process, _ = listen(server, tmp_path, "orphan")
    assert server._process is not None
    server._process.kill()
    server._process.wait()
    assert process.poll() is None, "what it forked goes on"
    with pytest.raises(EngineError, match="has ended"):
        server.launch([sys.executable, "-m", "this"], dict(os.environ), tmp_path / "log")
    server.stop()
    assert process.wait() == UNKNOWN


def test_what_was_forked_a_moment_ago_is_ended_too(tmp_path: Path) -> None:
    for number in range(5):
        server = ForkServer(tmp_path / "engines.log", PROGRAM)
        process = server.launch([sys.executable, "-m", "timeit", "-n", "1", "import time; time.sleep(60)"],
                                dict(os.environ), tmp_path / f"log-{number}")  # fmt: skip
        assert os.getpgid(process.pid) == process.pid
        server.stop()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{process.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not Path(f"/proc/{process.pid}").exists()


def test_an_interruption_does_not_part_an_order_from_its_reply(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = listen(server, tmp_path, "engine")
    waiting = server._exchanges.submit

    class Interrupted:
        def result(self) -> None:
            raise KeyboardInterrupt

    def submit(*arguments: object) -> Interrupted:
        waiting(*arguments)  # type: ignore[arg-type]
        return Interrupted()

    monkeypatch.setattr(server._exchanges, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        server.launch([*LISTENING, str(tmp_path), str(choose_port(None))], dict(os.environ), tmp_path / "second.log")
    monkeypatch.undo()
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    second = server._forked[-1]
    assert second.pid != process.pid
    server.stop()
    assert second.wait() == -signal.SIGKILL


def test_supervision_of_a_forked_engine_that_dies_at_start(server: ForkServer, tmp_path: Path) -> None:
    settings = EngineSettings(model=tmp_path, log_file=tmp_path / "engine.log", cpu=False, start_timeout_s=60)

    def launch(arguments: object, environment: object, log_file: Path) -> Process:
        return server.launch([sys.executable, "-m", "json.tool", "--nonsense"], dict(os.environ), log_file)

    with pytest.raises(EngineError, match=r"exit code 2 while starting(.|\n)*--nonsense"):
        LocalEngine(settings, launch=launch).__enter__()


def test_the_compiler_of_the_native_function_stays_out_of_what_engines_are_forked_from() -> None:
    """vLLM's worker stumbles over modules of numba that were imported before it."""
    code = (
        "import os, sys; from server.in_engine.fork_server import compile_beside\n"
        "ended, status = os.waitpid(compile_beside(), 0)\n"
        "print(status == 0 and 'numba' not in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout == "True\n"


def test_an_engine_that_drafts_is_forked_when_the_native_function_is_compiled(tmp_path: Path) -> None:
    waiting = (
        "import os, time; from server.in_engine import fork_server as f; f.SHARED = ()\n"
        "def compile_beside():\n"
        "    if (pid := os.fork()): return pid\n"
        f"    while not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\n"
        f"    open('{tmp_path}/compiled', 'w'); os._exit(0)\n"
        "f.compile_beside = compile_beside; f.main()"
    )
    server = ForkServer(tmp_path / "engines.log", ("-c", waiting))
    plain = server.launch([sys.executable, "-m", "this"], dict(os.environ), tmp_path / "plain.log")
    assert plain.wait() == 0, "an engine that does not draft need not wait"
    (tmp_path / "go").touch()
    server.launch([sys.executable, "-m", "this", DRAFTING], dict(os.environ), tmp_path / "draft.log")
    assert (tmp_path / "compiled").exists()
    server.stop()


def test_one_server_for_all_that_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForkServer.__init__, "__defaults__", (PROGRAM,))
    assert launch_single() is launch_program
    with shared_fork_server(tmp_path / "new" / "engines.log", sys.executable, os.environ):
        with fork_server(tmp_path / "unused.log") as first, fork_server(tmp_path / "unused.log") as second:
            assert first == second == launch_single()
            process = first([sys.executable, "-m", "timeit", "-n", "1", "import time; time.sleep(60)"],
                            dict(os.environ), tmp_path / "log")  # fmt: skip
        assert process.poll() is None, "it is the whole run's, not the stage's"
    assert process.wait() == -signal.SIGKILL
    assert launch_single() is launch_program
    assert not (tmp_path / "unused.log").exists()


def test_what_was_never_asked_for_anything_ends_at_once(tmp_path: Path) -> None:
    sleeping = ("-c", "import time; time.sleep(60)")
    server = ForkServer(tmp_path / "engines.log", sleeping)
    server.begin(sys.executable, os.environ)
    assert server._process is not None
    server.stop()
    assert server._process.returncode == -signal.SIGKILL
