"""A vLLM plugin that forks the engine's core process from its front end instead of starting a fresh interpreter.

Nearly all of an engine's start is imports, and both processes import the same: on a CPU vLLM asks for ``spawn``, which does it
twice. At the time of the fork the front end has run no model and holds no thread of computation. It does listen already, so
the core closes what it inherits of that: otherwise the port would look alive after the front end is gone.
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import socket

SWITCH = "UNDERSTUDY_FORKED_CORE"
"""The environment variable is "on" in engines that keep their model in the core process; anything else changes nothing."""

_log = logging.getLogger("vllm.understudy.forked_core")


def register() -> None:
    """Entry point, called in every process of the engine; only the front end starts a core process after it."""
    if os.environ.get(SWITCH, "off").strip().lower() != "on":
        return
    try:
        launching = importlib.import_module("vllm.v1.engine.utils")
        launching.get_mp_context  # noqa: B018
    except (ImportError, AttributeError) as error:  # another version: its own way of starting is fine
        _log.warning("the core process is started as installed: %r", error)
        return
    launching.get_mp_context = lambda: multiprocessing.get_context("fork")  # type: ignore[attr-defined]
    os.register_at_fork(after_in_child=close_listening)


def close_listening() -> None:
    """Closes every listening socket of this process."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            own = socket.socket(fileno=os.dup(number))
        except OSError:  # no socket, or gone by now
            continue
        with own:
            if own.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                os.close(number)
