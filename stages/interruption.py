"""Ctrl-C, and what `kill` and `docker stop` send, between the steps of long work, so that what is saved then is whole."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stages.progress import log

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interrupt_on_both() -> None:
    """Lets SIGTERM interrupt as Ctrl-C does: engines are ended, and what has a checkpoint saves it.

    Not where `accelerate launch` has started one process of several: when one has failed, it ends the others with that signal. Nor
    in forked processes, e.g. of the harness's pools, which end so as a rule.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def interrupted_between_steps(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Holds both signals back while the block runs; the second one interrupts at once.

    Args:
        enabled: False leaves them as they are, as does running outside the main thread, where Python allows nothing else.

    Yields:
        what says, between two steps, whether to save and raise KeyboardInterrupt.
    """
    asked = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        log("stopping after this step; Ctrl-C again stops at once, and then goes on from the last checkpoint")

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = [(number, signal.signal(number, note)) for number in SIGNALS]
    try:
        yield lambda: asked
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if asked:  # too late for the last step
        raise KeyboardInterrupt
