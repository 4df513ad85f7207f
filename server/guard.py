"""Run as a process of its own: waits on a pipe, and ends a process group when the other end is gone without a word.

The pipe closes when the process that supervises the engine dies, however it dies; a last word means that the engine
has been stopped in good order.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """``guard.py GROUP`` with the pipe as standard input."""
    group = int(sys.argv[1])
    if not sys.stdin.buffer.read():
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            return


if __name__ == "__main__":
    main()
