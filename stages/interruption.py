"""Ctrl-C between the steps of long work, so that what is saved then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from stages.progress import log


@contextmanager
def interrupted_between_steps(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Holds Ctrl-C back while the block runs; the second one interrupts at once.

    Args:
        enabled: False leaves Ctrl-C as it is, as does running outside the main thread, where Python allows nothing else.

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
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:  # too late for the last step
        raise KeyboardInterrupt
