"""A process that has imported the engine once and forks as many engines as it is asked for.

Most of an engine's start on a CPU is imports. Several engines side by side need them once: what is forked shares them, and
their memory. It says ``{}`` once it has imported. Then orders come as lines of JSON on standard input, each is answered with a
line on standard output:

    {"arguments": [...], "environment": {...}, "log": path}   →  {"pid": 17}
    {"poll": 17}                                              →  {"code": null}, later {"code": 0}

The process ends with its standard input; engines that still run then are their owners' to end.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from contextlib import suppress
from typing import Any, TextIO

from server.in_engine.forked_core import keep_cores

SHARED = (
    "vllm.entrypoints.openai.api_server",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
)
"""What every engine imports anyway; a version that has one of them elsewhere imports that later, in each engine."""


DRAFTING = "server.in_engine.direct_drafting"
"""An engine whose arguments name this runs the native function; it is compiled once, and not in every such engine."""


def compile_beside() -> int:
    """Begins to compile the native function; returns the process that does.

    The compiler works in a process of its own and leaves its result on disk: vLLM's worker looks through all modules that were
    imported before it and stumbles over the compiler's.
    """
    pid = os.fork()
    if pid == 0:
        try:
            importlib.import_module("server.in_engine.draft_kernel").compile_ahead()
        finally:
            os._exit(0)
    return pid


def exit_code(pid: int) -> int | None:
    """How a forked engine ended, as ``subprocess`` has it (a signal is negative); None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become_engine(order: dict[str, Any]) -> None:
    """Turns this process into the engine: a log and an environment of its own, then its main module.

    Args:
        order: ``arguments`` begin with the interpreter and ``-m MODULE``.
    """
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, place in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, place)
    os.environ.clear()
    os.environ.update(order["environment"])
    if "torch" in sys.modules and (threads := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        sys.modules["torch"].set_num_threads(int(threads))  # it has read the fork server's
    _, _, module, *rest = order["arguments"]
    sys.argv = [module, *rest]
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def serve(orders: TextIO, replies: TextIO, compiler: int) -> None:
    """Answers orders until there are no more; returns in an engine too, when that has ended.

    Args:
        compiler: the process that compiles the native function; engines that run it are forked when it has ended.
    """
    compiling = True
    while line := orders.readline():
        order = json.loads(line)
        if "poll" in order:
            reply = {"code": exit_code(order["poll"])}
        else:
            if compiling and any(DRAFTING in argument for argument in order["arguments"]):
                os.waitpid(compiler, 0)
                compiling = False
            leads, led = os.pipe()  # the answer waits until the engine leads a group, by which it can be ended
            pid = os.fork()
            if pid == 0:
                replies.close()
                os.setsid()
                os.close(leads)
                os.close(led)
                become_engine(order)
                return
            os.close(led)
            os.read(leads, 1)
            os.close(leads)
            reply = {"pid": pid}
        print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """Standard output belongs to the replies; whatever else is printed goes where errors go."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in SHARED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(module)
    keep_cores()
    compiler = compile_beside()
    print("{}", file=replies, flush=True)
    serve(sys.stdin, replies, compiler)


if __name__ == "__main__":
    main()
