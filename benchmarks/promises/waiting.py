"""Asking again and again, and how long it took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL_S = 0.01


async def seconds_until(question: Callable[[], Awaitable[bool]], since_s: float, most_s: float) -> float:
    """How long it took until the answer was yes; more than ``most_s`` where it is not by then.

    Args:
        question: is asked every hundredth of a second.
        since_s: the reading of `time.monotonic` from which on it counts.
        most_s: when to give up.
    """
    while True:
        yes, passed_s = await question(), time.monotonic() - since_s
        if yes or passed_s > most_s:
            return passed_s
        await asyncio.sleep(POLL_S)
