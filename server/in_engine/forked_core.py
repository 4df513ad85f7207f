"""A vLLM plugin that forks the engine's core process from its front end instead of starting a fresh interpreter.

Nearly all of an engine's start is imports, and both processes import the same: on a CPU vLLM asks for ``spawn``, which does it
twice. At the time of the fork the front end has run no model and holds no thread of computation. It has bound its port already,
and its event loop is woken by signals through a descriptor; the core lets go of both. Otherwise the port would look alive after
the front end is gone, and a signal to the core would reach the front end too.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import signal
import socket
import sys

SWITCH = "UNDERSTUDY_FORKED_CORE"
"""The environment variable is "on" in engines that keep their model in the core process; anything else changes nothing."""

_log = logging.getLogger("vllm.understudy.forked_core")


def register() -> None:
    """Entry point, called in every process of the engine; only the front end starts a core process after it."""
    if os.environ.get(SWITCH, "off").strip().lower() != "on":
        return
    launching = importlib.import_module("vllm.v1.engine.utils")
    if not hasattr(launching, "get_mp_context"):  # another version: its own way of starting is fine
        _log.warning("the core process is started as installed: vLLM has no get_mp_context where it was")
        return
    launching.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]
    os.register_at_fork(after_in_child=let_go)
    keep_cores()
    os.register_at_fork(after_in_child=renew_pool)


def keep_cores() -> None:
    """Lets what this process forks run where it may run itself: Intel's OpenMP binds a forked child to the first core.

    Engines side by side would all work on that core, and an engine's front end would take turns with its own model.
    """
    cores = os.sched_getaffinity(0)
    os.register_at_fork(after_in_child=lambda: os.sched_setaffinity(0, cores))


def renew_pool() -> None:
    """Lets torch make its pool of threads anew, while there is one thread only.

    In a forked process it does so when the pool is first asked for, and two threads that ask at the same moment (transformers loads
    a draft's weights with several) may be given none: "Invalid thread pool!".
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(torch.get_num_threads())


def let_go() -> None:
    """Closes this process's own copies of sockets that listen or will, and keeps its signals to itself."""
    signal.set_wakeup_fd(-1)
    for name in os.listdir("/proc/self/fd"):
        try:
            found = socket.socket(fileno=int(name))
        except OSError:  # no socket, or gone by now
            continue
        serves = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
        if serves and not _has_peer(found):
            found.close()
        else:
            found.detach()


def _has_peer(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True
