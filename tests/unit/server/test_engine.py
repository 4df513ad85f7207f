"""Supervision of an engine, with a stand-in for the interpreter that is started: a shell script of a few lines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from server.engine import QUIET_PORTS, LocalEngine, answers, bind, choose_port, last_lines
from server.engine_command import EngineSettings
from stages.errors import EngineError, InputError

HEALTHY = """#!/bin/sh
sleep 300 &
echo $! > {folder}/child
trap '' TERM
exec {python} -m http.server --bind 127.0.0.1 --directory {folder}/www $6
"""
DYING = """#!/bin/sh
echo loading
echo 'ValueError: no such model' >&2
exit 7
"""
SILENT = "#!/bin/sh\nsleep 300\n"


def settings(folder: Path, script: str, **more: object) -> EngineSettings:
    program = folder / "python"
    program.write_text(script.format(folder=folder, python=sys.executable))
    program.chmod(0o755)
    (folder / "www").mkdir()
    (folder / "www" / "health").write_text("")
    fields = {"model": folder, "python": program, "log_file": folder / "logs" / "engine.log", "cpu": False, **more}
    return EngineSettings.model_validate(fields)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def test_the_whole_group_ends_even_when_it_will_not_listen(tmp_path: Path) -> None:
    with LocalEngine(settings(tmp_path, HEALTHY, stop_grace_s=0.2)) as engine:
        assert engine.url.startswith("http://127.0.0.1:")
        child = int((tmp_path / "child").read_text())
        assert lives(child)
        engine.check_alive()
    assert gone(child)
    engine.stop()


def test_an_engine_that_dies_at_start_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"exit code 7 while starting(.|\n)*ValueError: no such model"):
        LocalEngine(settings(tmp_path, DYING)).__enter__()


def test_an_engine_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="not ready after"):
        LocalEngine(settings(tmp_path, SILENT, start_timeout_s=0.3, stop_grace_s=0.1)).__enter__()


def test_an_engine_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with LocalEngine(settings(tmp_path, HEALTHY, stop_grace_s=0.2)) as engine:
        group = int(subprocess.check_output(["ps", "-o", "pgid=", (tmp_path / "child").read_text().strip()]))
        os.killpg(group, signal.SIGKILL)
        assert gone(group)
        with pytest.raises(EngineError, match="killed by signal 9 while serving"):
            engine.check_alive()


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    made = settings(tmp_path, HEALTHY)
    code = (
        "import sys, time; from server.engine import LocalEngine; from server.engine_command import EngineSettings\n"
        "with LocalEngine(EngineSettings.model_validate_json(sys.argv[1])): print('up', flush=True); time.sleep(300)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code, made.model_dump_json()], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == b"up\n"
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert gone(int((tmp_path / "child").read_text()))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 cannot be used"):
            LocalEngine(settings(tmp_path, SILENT, port=port)).start()


def test_a_free_port_is_found() -> None:
    assert choose_port(None) in QUIET_PORTS


def test_a_free_port_is_found_where_all_quiet_ones_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        monkeypatch.setattr("server.engine.QUIET_PORTS", [taken.getsockname()[1]] * 100)
        assert 1024 <= choose_port(None) <= 65535


@pytest.mark.parametrize("tokens", [0, -1, "4", None, True])
def test_fewer_than_one_draft_token(tmp_path: Path, tokens: object) -> None:
    config = {"method": "ngram", "num_speculative_tokens": tokens}
    with pytest.raises(InputError, match="at least 1"):
        LocalEngine(settings(tmp_path, SILENT, speculative_config=config))


def test_what_does_not_speak_http_is_no_engine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")

        threading.Thread(target=greet, daemon=True).start()
        assert not answers(f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("url", ["http://127.0.0.1:port", "http://a b", "nonsense", "http://.."])
def test_what_is_no_address_does_not_answer(url: str) -> None:
    assert not answers(url)


def test_last_lines_skip_what_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a\n\n  \nb\xff\nc\n")
    assert last_lines(log, 2) == ["b\ufffd", "c"]
    assert last_lines(tmp_path / "absent") == []


def test_what_is_sent_on_accepted_connections_is_not_held_back() -> None:
    async def no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bind("127.0.0.1", 0)
        async with await asyncio.start_server(accept, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.close()
            return await found

    assert asyncio.run(no_delay()) == 1
