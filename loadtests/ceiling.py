"""What the load generator itself can do: asked of a server that only replays bytes, so that the generator is what is measured."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from loadtests.figures import Result
from loadtests.settings import LoadSettings
from stages.errors import EngineError

PROJECT = Path(__file__).resolve().parent.parent
STREAMER = "benchmarks.gateway_streamer"
USERS = 32
CHUNKS = 128
GAP_US = 1000
PUBLISHABLE = 0.5
"""Share of its ceiling above which a load generator measures itself."""


@dataclass(frozen=True)
class Ceiling:
    """The most requests and the most chunks per second; each was measured by itself."""

    requests_per_s: float
    chunks_per_s: float

    def share(self, requests_per_s: float, chunks_per_s: float) -> float:
        """How much of the generator a load takes: the two shares added up, because one core serves both."""
        return requests_per_s / self.requests_per_s + chunks_per_s / self.chunks_per_s


WHOLE = LoadSettings(users=(USERS,), rates=(), turns=1, requests_per_turn=2048, stream=0.0)
STREAMS = LoadSettings(users=(USERS,), rates=(), turns=1, requests_per_turn=256, stream=1.0)


@contextmanager
def streamer() -> Iterator[str]:
    """Runs the byte-replaying streamer of ``benchmarks`` on loopback; yields its address."""
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    child = subprocess.Popen(
        [sys.executable, "-m", STREAMER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield f"http://127.0.0.1:{int(child.stdout.readline())}"
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()


def at_hand() -> bool:
    """Whether the streamer is there: it lies in the repository, and is not installed with the package."""
    return (PROJECT / STREAMER.replace(".", "/")).with_suffix(".py").is_file()


def measure_ceiling(carry_out: Callable[[LoadSettings, dict[str, str]], Sequence[Result]]) -> Ceiling:
    """Measures both ceilings, in a few seconds: with ``USERS`` users; chunks come one at a time, a millisecond apart.

    Args:
        carry_out: runs a load test as the one that is to be judged will be run.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with streamer() as url:
        (whole,) = carry_out(WHOLE, {"plain": url})
        opener.open(f"{url}/bench/plan?chunks={CHUNKS}&gap_us={GAP_US}", timeout=10).close()
        (streams,) = carry_out(STREAMS, {"plain": url})
    answered = sum(not outcome.error for outcome in whole.outcomes)
    chunks = sum(len(outcome.chunk_s) for outcome in streams.outcomes)
    if not answered or not chunks:
        failed = next((outcome.error for outcome in (*whole.outcomes, *streams.outcomes) if outcome.error), "no answer")
        raise EngineError(f"the load generator's own ceiling could not be measured on loopback: {failed}")
    return Ceiling(answered / whole.wall_s, chunks / streams.wall_s)
