"""A local engine: started in its own process group on loopback, waited for, watched, and stopped without a trace."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType

from server.asking import NO_ANSWER, open_directly
from server.engine_command import EngineSettings, command, cpu_build_installed, environment, in_process_by_default
from server.launching import Launch, Process, launch_program, shared_fork_server
from server.pair import check_speculation
from stages.errors import EngineError, InputError
from stages.folders import storage_errors

LAST_LINES = 12
POLL_S = 0.25
NOTE_EVERY_S = 5.0
QUIET_PORTS = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections (32,768 and up, or 49,152), and few services have one of them."""

Note = Callable[[float, str], None]
"""Called while waiting, with the seconds so far and the engine's latest log line."""


def _silent(seconds: float, line: str) -> None:
    """No progress."""


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not listening yet.

    It names TCP as its protocol: asyncio switches Nagle's algorithm off on no other, and with it on, the first token on a
    connection that is used again comes 40 ms late.

    Raises:
        InputError: when the port is taken or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"port {port} on {host} cannot be used ({reason}); choose another port from 1 to 65535"
        ) from error
    return bound


def choose_port(wanted: int | None) -> int:
    """A port on loopback that nobody has at this moment.

    Ten seconds and more pass before the engine binds it, and meanwhile the system may give any of its ephemeral ports to somebody's
    connection. So one of ``QUIET_PORTS`` is taken, which it gives to nobody.

    Raises:
        InputError: when the wanted one is taken.
    """
    for port in [wanted] if wanted else random.sample(QUIET_PORTS, 100):
        with suppress(InputError) if not wanted else nullcontext(), bind("127.0.0.1", port):
            return port
    with bind("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """True when the engine at ``url`` says that it is healthy."""
    try:
        with open_directly(f"{url.rstrip('/')}/health", timeout_s=2) as response:
            return bool(response.status == 200)
    except NO_ANSWER:
        return False


def last_lines(path: Path, count: int = LAST_LINES) -> list[str]:
    """The last lines of a log that say something."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


class LocalEngine:
    """One engine process group. ``with LocalEngine(settings) as engine: engine.url`` starts, waits and stops.

    Args:
        settings: what to serve and how.
        note: told of the waiting, for a progress line.
        launch: how its process is started.

    Raises:
        InputError: fewer than one draft token, or a port that is taken.
    """

    def __init__(self, settings: EngineSettings, note: Note = _silent, launch: Launch = launch_program):
        if settings.speculative_config is not None:
            check_speculation(settings.speculative_config, "engine")
        self.settings = settings
        self.url = ""
        """Where it listens, once started."""
        self._note = note
        self._launch = launch
        self._process: Process | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Starts the process and returns at once."""
        port = choose_port(self.settings.port)
        self.url = f"http://127.0.0.1:{port}"
        log_file = self.settings.log_file
        with storage_errors(log_file):
            log_file.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._launch(command(self.settings, port), environment(self.settings, os.environ), log_file)
        self._guard = _start_guard(self._process.pid)

    def wait_ready(self) -> None:
        """Waits until the engine answers.

        Raises:
            EngineError: when it dies (with its last lines), takes too long, or is stopped meanwhile.
        """
        started = noted = time.monotonic()
        while not answers(self.url):
            now = time.monotonic()
            self.check_alive("while starting")
            if now - started > self.settings.start_timeout_s:
                raise EngineError(self._story(f"the engine was not ready after {self.settings.start_timeout_s:.0f} s"))
            if now - noted >= NOTE_EVERY_S:
                noted = now
                self._note(now - started, next(iter(last_lines(self.settings.log_file, 1)), ""))
            if self._stopping.wait(POLL_S):
                raise EngineError("the engine was stopped before it was ready")

    def check_alive(self, when: str = "while serving") -> None:
        """Raises EngineError with the engine's last lines when its process has ended."""
        code = None if self._process is None else self._process.poll()
        if code is not None and not self._stopping.is_set():
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise EngineError(self._story(f"the engine {ended} {when}"))

    def stop(self) -> None:
        """Ends the whole process group: asks, waits the grace, then kills. Harmless when there is nothing to end."""
        self._stopping.set()
        process, self._process = self._process, None
        if process is None:
            return
        deadline = time.monotonic() + self.settings.stop_grace_s
        _signal_group(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline and (process.poll() is None or _group_lives(process.pid)):
            time.sleep(0.05)
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
        _dismiss_guard(self._guard)

    def __enter__(self) -> LocalEngine:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _story(self, what: str) -> str:
        lines = "\n".join(f"    {line}" for line in last_lines(self.settings.log_file))
        return f"{what}; its log is {self.settings.log_file} and ends with\n{lines}"


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _start_guard(group: int) -> subprocess.Popen[bytes]:
    """A tiny process that ends the engine's group should this process be killed before it can do so itself."""
    arguments = [sys.executable, "-S", str(Path(__file__).with_name("guard.py")), str(group)]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, start_new_session=True)


def _dismiss_guard(guard: subprocess.Popen[bytes] | None) -> None:
    if guard is None or guard.stdin is None:
        return
    try:
        guard.stdin.write(b"done")
        guard.stdin.close()
    except OSError:
        pass
    guard.wait()


def forks_engines() -> bool:
    """Whether engines are forked from one process here: where most of their start is imports, and cores are few."""
    return cpu_build_installed() and in_process_by_default()


@contextmanager
def engines_at_hand(log_file: Path) -> Iterator[None]:
    """Within it, engines start sooner: what they need is imported once, beginning now; where that gains nothing, as always."""
    if not forks_engines():
        yield
        return
    settings = EngineSettings(model=Path(), log_file=log_file)
    with shared_fork_server(log_file, str(settings.python), environment(settings, os.environ)):
        yield
