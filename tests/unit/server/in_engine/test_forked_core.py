"""A forked core process, and what it lets go of."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from server.in_engine.forked_core import SWITCH, let_go


def hold(pipe: Connection) -> None:
    """What the core does after the fork; tells its open descriptors before and after, and where signals went."""
    before = len(os.listdir("/proc/self/fd"))
    woken = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(woken)
    let_go()
    pipe.send((before, len(os.listdir("/proc/self/fd")), woken, signal.set_wakeup_fd(-1)))
    pipe.recv()


def test_a_child_that_lives_on_keeps_neither_the_port_nor_the_signals_of_its_parent() -> None:
    """As in vLLM: the parent binds, forks, and listens only then."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    address = bound.getsockname()
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    previous = signal.set_wakeup_fd(writing.fileno())
    child = fork.Process(target=hold, args=(theirs,))
    try:
        child.start()
    finally:
        signal.set_wakeup_fd(previous)
    try:
        assert ours.poll(30)
        before, after, woken, left = ours.recv()
        assert after == before - 1
        assert woken == writing.fileno()
        assert left == -1
        bound.listen()
        with socket.create_connection(address, timeout=5):
            pass
        bound.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, timeout=5)
        assert child.is_alive()
    finally:
        ours.send("done")
        child.join()
        reading.close()
        writing.close()


def test_what_is_forked_runs_on_all_cores() -> None:
    """Intel's OpenMP, preloaded as for an engine, binds a forked child to the first core (nearly always); with one core it may."""
    openmp = Path(sys.prefix) / "lib" / "libiomp5.so"
    if not openmp.is_file() or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs libiomp5 and two cores")
    code = (
        "import os, torch\n"
        "from server.in_engine.forked_core import keep_cores\n"
        "keep_cores()\n"
        "torch.randn(512, 512) @ torch.randn(512, 512)\n"
        "if os.fork() == 0:\n"
        "    torch.set_num_threads(1); torch.randn(512, 512) @ torch.randn(512, 512)\n"
        "    print(len(os.sched_getaffinity(0)), flush=True); os._exit(0)\n"
        "os.wait()"
    )
    environment = {**os.environ, "LD_PRELOAD": str(openmp)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["", "off"])
def test_an_engine_that_is_not_asked_to_fork_is_left_alone(value: str) -> None:
    code = "import server.in_engine.forked_core as f, sys; f.register(); print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={SWITCH: value}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_forked_process_makes_its_pool_of_threads_before_it_has_threads() -> None:
    """What is asserted of torch is that it says so itself; the race is too rare to be waited for."""
    script = (
        "import os, torch, threading\n"
        "from server.in_engine import forked_core\n"
        "torch.set_num_threads(2); torch.ones(100_000).sum()\n"
        "os.register_at_fork(after_in_child=forked_core.renew_pool)\n"
        "said = []\n"
        "ask = torch.set_num_threads\n"
        "torch.set_num_threads = lambda count: (said.append((count, threading.active_count())), ask(count))\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    workers = [threading.Thread(target=torch.ones(1000).double) for _ in range(8)]\n"
        "    [worker.start() for worker in workers], [worker.join() for worker in workers]\n"
        "    os._exit(0 if said == [(2, 1)] else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[4]).returncode == 0
