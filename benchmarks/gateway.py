"""The gateway beside other proxies: ``python -m benchmarks.gateway`` measures, and writes gateway.json.

Upstream is our own streamer that replays bytes; its ceiling is measured first. Streamer and client share one core, and each
proxy has the other core for itself (where there are two). Proxies take turns in every cell of every repeat. CPU seconds are
those of a proxy's whole process tree, from /proc. Requests are sent one by one at a rate that every proxy here can keep up with,
so that what a proxy adds to the first byte is its own work and not a queue before it; streams are paced so that about
``CHUNKS_PER_S`` chunks pass a second, because chunks that arrive together are cheaper than a live engine's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gateway_load import Load, Result
from benchmarks.gateway_proxies import KEY, PROXIES, NotInstallable, Proxy, answers, running

FILE = Path(__file__).parent / "gateway.json"
CHUNKS_PER_S = 400
"""Slow enough that LiteLLM, too, has time left."""
REQUESTS_PER_S = 40
"""Likewise, of answers in one piece; streams begin as often as others end."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SHAPES = ("whole", "stream")


@dataclass(frozen=True)
class Plan:
    """How much is asked."""

    repeats: int = 3
    connections: tuple[int, ...] = (1, 8, 32)
    whole_requests: int = 400
    stream_requests: int = 24
    chunks: int = 96

    def requests(self, shape: str, connections: int) -> int:
        """Requests of one cell: at least two for each connection."""
        return max(2 * connections, self.stream_requests if shape == "stream" else self.whole_requests)

    def rate(self, shape: str) -> float:
        """Requests a second."""
        return CHUNKS_PER_S / self.chunks if shape == "stream" else REQUESTS_PER_S


SHORT = Plan(repeats=1, whole_requests=60, stream_requests=8, chunks=32)


@dataclass(frozen=True)
class Target:
    """Something that answers: a proxy, or the streamer itself."""

    name: str
    port: int
    key: str = ""
    pid: int | None = None


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def _fields(pid: int) -> list[str]:
    """What /proc/PID/stat holds after the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_s(root: int) -> float:
    """CPU seconds of a process tree, children that ended and were waited for included."""
    total = 0.0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            total += sum(map(int, _fields(pid)[11:15])) * TICK_S
    return total


def memory_bytes(root: int) -> int:
    """Resident memory of a process tree; pages that its processes share count once for each."""
    total = 0
    for pid in tree(root):
        with contextlib.suppress(OSError):
            total += int(_fields(pid)[21]) * PAGE
    return total


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def carry_out(load: Load, core: int | None) -> Result:
    """Runs a load in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gateway_load"], input=json.dumps(asdict(load)), text=True, check=True,
        stdout=subprocess.PIPE, preexec_fn=_pinned(core),
    )  # fmt: skip
    return Result(**json.loads(done.stdout))


def _pinned(core: int | None) -> Any:
    return None if core is None else lambda: os.sched_setaffinity(0, {core})


def cores() -> tuple[int | None, int | None]:
    """A core for streamer and client, and one for the proxy; none where there is only one."""
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[1]) if len(found) > 1 else (None, None)


@contextlib.contextmanager
def streamer(core: int | None) -> Iterator[int]:
    """Runs the streamer for as long as the block runs; gives its port."""
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateway_streamer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=_pinned(core),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.stdin.close()
        child.wait()


def set_plan(port: int, chunks: int, gap_s: float) -> None:
    """Tells the streamer what streams look like from now on."""
    url = f"http://127.0.0.1:{port}/bench/plan?chunks={chunks}&gap_us={round(gap_s * 1e6)}"
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url).read()


def measure(target: Target, shape: str, connections: int, plan: Plan, core: int | None) -> dict[str, Any]:
    """One cell, once: warmed up with one request for each connection, then counted."""
    stream, requests = shape == "stream", plan.requests(shape, connections)
    load = Load(target.port, stream, connections, requests, target.key, rate=plan.rate(shape))
    carry_out(Load(target.port, stream, connections, connections, target.key), core)
    before = cpu_s(target.pid) if target.pid else 0.0
    result = carry_out(load, core)
    spent_s = cpu_s(target.pid) - before if target.pid else None
    answered = len(result.ttfb_s)
    chunks = answered * plan.chunks
    return {
        "errors": result.errors[:3], "answered": answered, "requests": requests, "events": result.events,
        "wall_s": result.wall_s, "ttfb_p50_s": percentile(result.ttfb_s, 0.5) if answered else None,
        "ttfb_p99_s": percentile(result.ttfb_s, 0.99) if answered else None,
        "cpu_s_per_request": spent_s / answered if spent_s is not None and answered else None,
        "cpu_s_per_1000_chunks": 1000 * spent_s / chunks if spent_s is not None and answered and stream else None,
    }  # fmt: skip


FIGURES = (
    "ttfb_p50_s",
    "ttfb_p99_s",
    "added_ttfb_p50_s",
    "added_ttfb_p99_s",
    "cpu_s_per_request",
    "cpu_s_per_1000_chunks",
)


def row(name: str, shape: str, connections: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One row: the median of all repeats for each figure, and the range of them."""
    made: dict[str, Any] = {"proxy": name, "shape": shape, "connections": connections, "repeats": len(found)}
    for key in ("answered", "requests", "events"):
        made[key] = sum(one[key] for one in found)
    made["errors"] = [error for one in found for error in one["errors"]][:3]
    for key in FIGURES:
        values = [one[key] for one in found if one.get(key) is not None]
        made[key] = statistics.median(values) if values else None
        made[f"{key}_range"] = [min(values), max(values)] if values else None
    return made


def add_differences(cells: dict[str, dict[str, Any]]) -> None:
    """Adds to one round's cells what each proxy adds to the direct way in the same round."""
    direct = cells["direct"]
    for cell in cells.values():
        for share in ("p50", "p99"):
            mine, base = cell[f"ttfb_{share}_s"], direct[f"ttfb_{share}_s"]
            cell[f"added_ttfb_{share}_s"] = mine - base if mine is not None and base is not None else None


def compare(targets: list[Target], upstream: int, plan: Plan, core: int | None) -> list[dict[str, Any]]:
    """All cells of all repeats, the targets taking turns; the first of them changes with every round."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    rounds = [(shape, n, repeat) for repeat in range(plan.repeats) for shape in SHAPES for n in plan.connections]
    for turn, (shape, connections, repeat) in enumerate(rounds):
        set_plan(upstream, plan.chunks, connections / CHUNKS_PER_S)
        first = turn % len(targets)
        order = targets[first:] + targets[:first]
        cells = {target.name: measure(target, shape, connections, plan, core) for target in order}
        add_differences(cells)
        for name, cell in cells.items():
            found.setdefault((name, shape, connections), []).append(cell)
        print(f"repeat {repeat + 1} of {plan.repeats}: {shape}, {connections} connections", file=sys.stderr, flush=True)
    return [row(*key, cells) for key, cells in found.items()]


def ceiling(port: int, plan: Plan, core: int | None) -> dict[str, float]:
    """What streamer and client do without a proxy and without pauses."""
    set_plan(port, plan.chunks, 0.0)
    whole = carry_out(Load(port, False, 32, 20 * plan.requests("whole", 32)), core)
    stream = carry_out(Load(port, True, 32, 20 * plan.requests("stream", 32)), core)
    chunks = len(stream.ttfb_s) * plan.chunks
    return {"requests_per_s": len(whole.ttfb_s) / whole.wall_s, "chunks_per_s": chunks / stream.wall_s}


@dataclass
class Environment:
    """Proxies that run, and why others do not."""

    targets: list[Target]
    proxies: list[dict[str, Any]]


@contextlib.contextmanager
def everyone(wanted: list[str], upstream: int, folder: Path, core: int | None) -> Iterator[Environment]:
    """Installs and starts all proxies for as long as the block runs."""
    found = Environment([Target("direct", upstream)], [])
    with contextlib.ExitStack() as stack:
        for proxy in PROXIES:
            if proxy.name in wanted:
                _start(proxy, upstream, folder / proxy.name, core, found, stack)
        yield found


def _start(
    proxy: Proxy, upstream: int, folder: Path, core: int | None, found: Environment, stack: contextlib.ExitStack
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said: dict[str, Any] = {"proxy": proxy.name, "version": None, "authenticates": False, "missing": None}
    found.proxies.append(said)
    try:
        said["version"] = proxy.install(folder)
        pid, port = stack.enter_context(running(proxy, folder, upstream, core))
    except NotInstallable as error:
        said["missing"] = str(error)
        print(f"{proxy.name}: {error}", file=sys.stderr)
        return
    said["authenticates"] = proxy.authenticates and bool(answers(port, "sk-another-key"))
    said["rss_before_bytes"] = memory_bytes(pid)
    found.targets.append(Target(proxy.name, port, KEY if proxy.authenticates else "", pid))


def hardware() -> dict[str, Any]:
    """What it ran on."""
    text = Path("/proc/cpuinfo").read_text()
    cpu = next(
        (line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "unknown"
    )
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": sys.version.split()[0]}


def benchmark(plan: Plan, wanted: list[str], folder: Path) -> dict[str, Any]:
    """The whole comparison."""
    ours, theirs = cores()
    with streamer(ours) as upstream, everyone(wanted, upstream, folder.resolve(), theirs) as environment:
        highest = ceiling(upstream, plan, ours)
        rows = compare(environment.targets, upstream, plan, ours)
        for said in environment.proxies:
            for target in environment.targets:
                if target.name == said["proxy"] and target.pid is not None:
                    said["rss_after_bytes"] = memory_bytes(target.pid)
    return {
        "overhead": rows, "proxies": environment.proxies, "ceiling": highest,
        "settings": {**asdict(plan), "chunks_per_s": CHUNKS_PER_S, "requests_per_s": REQUESTS_PER_S},
        "hardware": hardware(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip


def main() -> None:
    """Reads the options, measures, and writes the file; promises that were measured before stay in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few requests only: to see that it works")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-gateway"))
    parser.add_argument("--proxies", nargs="*", default=[proxy.name for proxy in PROXIES])
    options = parser.parse_args()
    before = json.loads(options.out.read_text()) if options.out.is_file() else {}
    record = benchmark(SHORT if options.short else Plan(), options.proxies, options.folder)
    record["promises"] = before.get("promises", [])
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(options.out)


if __name__ == "__main__":
    main()
