"""Two ways to start an engine's process: as a program of its own, or forked from one that has imported the engine already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from stages.errors import EngineError
from stages.folders import storage_errors

FORK_SERVER = ("-m", "server.in_engine.fork_server")
POLL_S = 0.02
STOP_S = 1.0
UNKNOWN = 255
"""The exit code of a process whose end nobody could wait for."""


class Process(Protocol):
    """What supervision needs of a process."""

    @property
    def pid(self) -> int:
        """It leads a session, and so a group, of its own."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Waits for its end."""


Launch = Callable[[Sequence[str], Mapping[str, str], Path], Process]
"""Starts a process: command line, environment, and the file that its output goes to."""


def launch_program(arguments: Sequence[str], environment: Mapping[str, str], log_file: Path) -> Process:
    """Starts a program of its own."""
    with storage_errors(log_file), log_file.open("wb") as log:
        return subprocess.Popen(
            arguments, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip


class Fork:
    """A process that a fork server has forked, and that only the fork server can wait for.

    Args:
        ask: sends an order to the fork server and returns its reply; None when that is gone.
    """

    def __init__(self, pid: int, ask: Callable[[dict[str, Any]], dict[str, Any] | None]):
        self.pid = pid
        self._ask = ask
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs; ``UNKNOWN`` when it ended after the fork server had."""
        if self._code is None:
            reply = self._ask({"poll": self.pid})
            if reply is not None:
                self._code = reply["code"]
            elif not _runs(self.pid):
                self._code = UNKNOWN
        return self._code

    def wait(self) -> int:
        """Waits for its end."""
        while (code := self.poll()) is None:
            time.sleep(POLL_S)
        return code


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie, which it stays where nobody waits for orphans (a container's first process)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


class ForkServer:
    """The fork server's process, started with ``begin`` or the first engine: ``launch`` is a ``Launch``.

    All engines must agree in what libraries read when they are loaded (``LD_PRELOAD``, ``OMP_NUM_THREADS``): the first one's
    environment decides. Orders are exchanged by a thread of their own, so that Ctrl-C never parts an order from its reply.

    Args:
        log_file: what it prints itself while importing.
        program: what the engines' interpreter runs as the fork server.
    """

    def __init__(self, log_file: Path, program: Sequence[str] = FORK_SERVER):
        self._program = program
        self._log_file = log_file
        self._process: subprocess.Popen[str] | None = None
        self._exchanges = ThreadPoolExecutor(1, thread_name_prefix="fork-server")
        self._forked: list[Fork] = []
        self._imported = self._stopped = False

    def begin(self, python: str, environment: Mapping[str, str]) -> None:
        """Begins to import and returns at once."""
        if self._process is not None:
            return
        with storage_errors(self._log_file):
            self._log_file.parent.mkdir(parents=True, exist_ok=True)
            with self._log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [python, *self._program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                    text=True, start_new_session=True,
                )  # fmt: skip

    def launch(self, arguments: Sequence[str], environment: Mapping[str, str], log_file: Path) -> Process:
        """Forks an engine, once everything is imported.

        Raises:
            EngineError: the fork server has died, most likely of an import.
        """
        self.begin(arguments[0], environment)
        self._wait_imported()
        with storage_errors(log_file):
            log_file.write_bytes(b"")
        order = {"arguments": list(arguments), "environment": dict(environment), "log": str(log_file.resolve())}
        if self._ask(order) is None:
            raise self._dead()
        return self._forked[-1]

    def _wait_imported(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        if not self._imported and not self._process.stdout.readline():
            raise self._dead()
        self._imported = True

    def _dead(self) -> EngineError:
        return EngineError(f"the process that engines are forked from has ended; its log is {self._log_file}")

    def _ask(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """Sends an order and returns its reply; None: there is none."""
        if self._stopped:
            return None
        return self._exchanges.submit(self._exchange, order).result()

    def _exchange(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """One order and its reply; what was forked is remembered before anyone else can fail to."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            reply = self._process.stdout.readline()
        except (OSError, ValueError):  # its end of the pipe is gone
            return None
        found: dict[str, Any] | None = json.loads(reply) if reply else None
        if found and "pid" in found:
            self._forked.append(Fork(found["pid"], self._ask))
        return found

    def stop(self) -> None:
        """Kills engines that nobody has stopped, then ends; harmless when done twice."""
        if self._stopped:
            return
        self._exchanges.submit(lambda: None).result()  # an exchange that Ctrl-C has left may still be under way
        for fork in self._forked:
            if fork.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(fork.pid, signal.SIGKILL)
                fork.wait()
        self._stopped = True
        self._exchanges.shutdown()
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if not self._imported:
            self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        with suppress(ProcessLookupError):  # what compiles beside it is of its group, engines are not
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


_shared: ForkServer | None = None


@contextmanager
def shared_fork_server(log_file: Path, python: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Within it, one fork server, which begins to import now, serves all that ask this process for one."""
    global _shared
    before, _shared = _shared, ForkServer(log_file)
    try:
        _shared.begin(python, environment)
        yield
    finally:
        _shared.stop()
        _shared = before


@contextmanager
def fork_server(log_file: Path) -> Iterator[Launch]:
    """A way to start several engines that share what they import: the shared fork server, or one of their own."""
    if _shared is not None:
        yield _shared.launch
        return
    server = ForkServer(log_file)
    try:
        yield server.launch
    finally:
        server.stop()


def launch_single() -> Launch:
    """How an engine that runs by itself is started: forked where there is a shared fork server, else as a program."""
    return launch_program if _shared is None else _shared.launch
