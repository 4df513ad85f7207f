"""What the gateway promises, tried: ``python -m benchmarks.gateway_promises`` writes `promises` into gateway.json.

Every promise is tried against ``understudy serve --engine-url`` as a process of its own, over loopback sockets, in front of a
stand-in that replays bytes. Client and stand-in share one core, the gateway has another (where there are two), so run it on a
machine with nothing else to do: a busy one is blamed on the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gateway import FILE, cores, hardware
from benchmarks.gateway_proxies import revision
from benchmarks.promises import budget, death, ending, leaving, overload, reloads, soak
from benchmarks.promises.plan import QUICK, Place, Plan
from benchmarks.promises.rows import Row, line, write
from stages.progress import log

LIMIT_S = 1800.0
"""No promise takes longer; by then something waits for what never comes."""


@dataclass(frozen=True)
class Promise:
    """One that can be tried by its name."""

    name: str
    about: str
    attempt: Callable[[Plan, Place], Awaitable[list[Row]]]


PROMISES = (
    Promise(
        leaving.NAME,
        "a client leaves, in four windows: the engine's connection closed, the place free",
        leaving.attempt,
    ),
    Promise(budget.NAME, "a tenant's tokens per minute under 64 parallel clients", budget.attempt),
    Promise(death.NAME, "the engine killed in mid-stream, and back again", death.attempt),
    Promise(overload.NAME, "three times more requests than can be served", overload.attempt),
    Promise(ending.NAME, "SIGTERM under load loses nothing", ending.attempt),
    Promise(reloads.NAME, "keys and settings read again under load", reloads.attempt),
    Promise(soak.NAME, "ten minutes of mixed load: memory and descriptors flat", soak.attempt),
)
NAMES = tuple(promise.name for promise in PROMISES)


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    epilog = "promises:\n" + "\n".join(f"  {promise.name:14} {promise.about}" for promise in PROMISES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gateway_promises", description=__doc__, epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="these, of the list below"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the tries, in two minutes: to see that it works"
    )
    parser.add_argument(
        "--tries", type=int, default=None, metavar="N", help=f"of each promise; {Plan().tries} if not given"
    )
    parser.add_argument(
        "--out", type=Path, default=FILE, help="rows of other promises in it stay; default: %(default)s"
    )
    return parser.parse_args(arguments)


async def _attempt(promise: Promise, plan: Plan, place: Place) -> list[Row]:
    return await promise.attempt(plan, place)


def carry_out(promise: Promise, plan: Plan, place: Place, machine: dict[str, Any]) -> list[Row]:
    """Tries one promise; its rows tell when, on which machine and of which revision."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(
        *gc.get_threshold()[:2], 1_000_000
    )  # the client's own full collections would be blamed on the gateway
    found = asyncio.run(asyncio.wait_for(_attempt(promise, plan, place), LIMIT_S))
    run: dict[str, Any] = {
        "hardware": machine, "revision": revision(), "date": datetime.now(UTC).date().isoformat()
    }  # fmt: skip
    return [replace(row, more={**row.more, **run}) for row in found]


def main() -> None:
    """Tries what was asked for, one promise after the other; each is in the file as soon as it has been tried."""
    asked = options()
    plan = QUICK if asked.quick else Plan()
    plan = plan if asked.tries is None else replace(plan, tries=asked.tries)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the gateway under test is ended, too
    machine = hardware()  # before this process keeps to one of its cores
    ours, theirs = cores()
    if ours is not None:
        os.sched_setaffinity(0, {ours})
    for promise in PROMISES:
        if promise.name in asked.only:
            started = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="promises-") as folder:
                found = carry_out(promise, plan, Place(Path(folder), theirs), machine)
            write(asked.out, found, NAMES)
            for row in found:
                print(line(row), flush=True)
            log(f"{promise.name}: {time.monotonic() - started:.0f} s")
    print(asked.out, file=sys.stderr)


if __name__ == "__main__":
    main()
