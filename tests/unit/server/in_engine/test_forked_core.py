"""A forked core process, and what it lets go of."""

from __future__ import annotations

import multiprocessing
import socket
import subprocess
import sys
from multiprocessing.synchronize import Event

import pytest

from server.in_engine.forked_core import SWITCH, close_listening


def hold(ready: Event, done: Event) -> None:
    close_listening()
    ready.set()
    done.wait(30)


def test_a_child_that_lives_on_does_not_keep_the_port_alive() -> None:
    fork = multiprocessing.get_context("fork")
    ready, done = fork.Event(), fork.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    child = fork.Process(target=hold, args=(ready, done))
    child.start()
    try:
        assert ready.wait(30)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        listening.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        assert child.is_alive()
    finally:
        done.set()
        child.join()


@pytest.mark.parametrize("value", ["", "off"])
def test_an_engine_that_is_not_asked_to_fork_is_left_alone(value: str) -> None:
    code = "import server.in_engine.forked_core as f, sys; f.register(); print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={SWITCH: value}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
