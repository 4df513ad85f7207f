"""Minutes of mixed load: answers of both kinds, clients that leave or never read, engines that fail, senseless requests.

Flat means: after a warm-up, the median of resident memory over as long again is the measure, and every second after that
stays within `MEMORY_SHARE` of it; descriptors stay within two for each client while there is load, and at rest after it there are
no more than at rest before it, but for `PROBED` connections to the engine.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gateway import PAGE
from benchmarks.promises.client import Answer, Request, connected, get, hang_up, post
from benchmarks.promises.keys import key_of, write_tenants
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, counted
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine, Script
from stages.progress import progress

NAME = "mixed-load"
CLIENTS = 24
UNREADING = 2
"""Clients beside those, each of which asks for a long stream and reads none of it."""
UNREAD_CHUNKS = 40_000
"""Of such a stream, about 9 MB: more than the kernel holds for a client."""
PATIENCE_S = 15.0
"""By when the gateway must have taken the connection of such a client away; it writes what the kernel takes, then waits
`client_stall_s`."""
SETTINGS = {"max_in_flight": 16, "max_queued": 16, "max_body_bytes": 65536, "client_stall_s": 2.0}
"""Fewer places than clients, so that some wait and some leave while they wait."""
MEMORY_SHARE = 0.05
SPARE = 4
"""Descriptors that the engine's probes and the admin port may have open beside those of clients."""
REST_S = 8.0
"""Longer than connections without a request are kept: the engine's are looked at every 3 s, and may then be 3 s old."""
PROBED = 6
"""Connections to the engine that a burst may leave open for good: the probes, two a second, use idle ones in turn, each of
which would be closed after 3 s."""
EVERY_S = 1.0
TENANT = "mixed"
KEY = key_of(TENANT)


@dataclass(frozen=True)
class Kind:
    """A kind of request."""

    name: str
    weight: float
    make: Callable[[Mix], tuple[bytes, Callable[[Answer], bool]]]
    """Its bytes, and what judges the answer."""


@dataclass
class Mix:
    """The load, and how each kind of request fared."""

    served: Served
    place: Place
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    asked: Counter[str] = field(default_factory=Counter)
    as_due: list[bool] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    async def client(self) -> None:
        """One client: any request, then the next."""
        while not self.stopping.is_set():
            kind = self.place.draw.choices(KINDS, [kind.weight for kind in KINDS])[0]
            data, judge = kind.make(self)
            self.asked[kind.name] += 1
            if kind.name == LEAVES:
                await self._leave(data)
                continue
            answer = await self.served.ask(data)
            self.as_due.append(judge(answer))
            if not self.as_due[-1]:
                self.wrong.append(f"{kind.name}: {answer.told}")

    async def _leave(self, data: bytes) -> None:
        async with connected(self.served.port) as (_, writer):
            writer.write(data)
            await asyncio.sleep(self.place.draw.uniform(0, 0.3))
            hang_up(writer, self.place.draw.random() < 0.5)

    async def unreading_client(self) -> None:
        """One client that never reads: it stays until its connection is taken away, or leaves with the load."""
        while not self.stopping.is_set():
            self.asked[NEVER_READS] += 1
            with unread(self.served.port, Request(Script(next(self.place.ids), UNREAD_CHUNKS), key=KEY).data()) as own:
                over = await self._until_over(own)
            if over or not self.stopping.is_set():
                self.as_due.append(over)
            if not over and not self.stopping.is_set():
                self.wrong.append(f"{NEVER_READS}: still connected after {PATIENCE_S:g} s")

    async def _until_over(self, connection: socket.socket) -> bool:
        deadline = time.monotonic() + PATIENCE_S
        while not self.stopping.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            if is_over(connection):
                return True
        return False

    def request(self, stream: bool, fault: str = "") -> Request:
        """A request that the engine gets, unless there is no room."""
        draw = self.place.draw
        script = Script(next(self.place.ids), draw.randint(4, 48), 0.005 * stream, draw.uniform(0.005, 0.2), fault)
        return Request(script, stream, KEY)


def _good(stream: bool) -> Callable[[Mix], tuple[bytes, Callable[[Answer], bool]]]:
    def make(mix: Mix) -> tuple[bytes, Callable[[Answer], bool]]:
        request = mix.request(stream)
        return request.data(), lambda answer: answer.fulfils(request) or answer.refused

    return make


def _either(mix: Mix) -> tuple[bytes, Callable[[Answer], bool]]:
    return _good(stream=mix.place.draw.random() < 0.5)(mix)


def _failing(fault: str) -> Callable[[Mix], tuple[bytes, Callable[[Answer], bool]]]:
    return lambda mix: (mix.request(mix.place.draw.random() < 0.5, fault).data(), _told_of_failure)


def _told_of_failure(answer: Answer) -> bool:
    """A status, or an event of the stream, and an end as HTTP knows it."""
    return answer.complete and (answer.refused or answer.status in (500, 502) or b'data: {"error"' in answer.body)


def _bad(data: bytes, status: int) -> Callable[[Mix], tuple[bytes, Callable[[Answer], bool]]]:
    return lambda _: (data, lambda answer: answer.complete and answer.status in (status, 503))


@contextmanager
def unread(port: int, data: bytes) -> Iterator[socket.socket]:
    """A request on a socket with a small buffer of its own, of which nothing is read; the block's end closes it."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.connect(("127.0.0.1", port))
        connection.sendall(data)
        connection.setblocking(False)
        yield connection


def is_over(connection: socket.socket) -> bool:
    """Whether a connection was taken away, or its request refused; looks without reading."""
    try:
        begun = connection.recv(12, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return not begun.endswith(b" 200") or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


LEAVES = "client leaves"
NEVER_READS = "client never reads"
CHAT = "/v1/chat/completions"
KINDS = (
    Kind("stream", 40, _good(stream=True)),
    Kind("answer in one piece", 25, _good(stream=False)),
    Kind(LEAVES, 15, _either),
    Kind("engine fails", 4, _failing("500")),
    Kind("engine breaks off", 4, _failing("cut")),
    Kind("not JSON", 3, _bad(post(CHAT, b'{"model": "bench", "messages": [', KEY), 400)),
    Kind("unknown key", 3, _bad(post(CHAT, b"{}", "sk-nobody"), 401)),
    Kind("no such route", 2, _bad(post("/v1/nowhere", b"{}", KEY), 404)),
    Kind("too large", 1, _bad(post(CHAT, b" " * 65537, KEY), 413)),
    Kind("list of models", 3, _bad(get("/v1/models", KEY), 200)),
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """The gateway's process at one time."""

    at_s: float
    rss_bytes: int
    descriptors: int


def sample(pid: int) -> Sample:
    """As it is now."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Sample(time.monotonic(), resident * PAGE, len(os.listdir(f"/proc/{pid}/fd")))


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """Three rows."""
    tenants = place.folder / "tenants.yaml"
    write_tenants(tenants, {TENANT: {"tokens_per_minute": 10**9, "requests_per_minute": 10**6}})
    options = ["--tenants", str(tenants)]
    async with (
        Engine().running() as engine,
        gateway(engine.url, place.folder / "mixed.log", place.core, options, **SETTINGS) as served,
    ):
        mix = Mix(served, place)
        await served.ask(mix.request(stream=True).data())
        await asyncio.sleep(REST_S)
        before = sample(served.child.pid)
        samples = await _under_load(mix, engine, plan)
        await asyncio.sleep(REST_S)
        after, left = sample(served.child.pid), await served.requests()
    return _rows(plan, mix, [before, *samples, after], left["under_way"])


async def _under_load(mix: Mix, engine: Engine, plan: Plan) -> list[Sample]:
    clients = [asyncio.create_task(mix.client()) for _ in range(CLIENTS)]
    clients += [asyncio.create_task(mix.unreading_client()) for _ in range(UNREADING)]
    samples: list[Sample] = []
    started = time.monotonic()
    with progress(NAME, plan.mixed_s, "seconds") as advance:
        while (passed_s := time.monotonic() - started) < plan.mixed_s:
            await asyncio.sleep(EVERY_S)
            samples.append(sample(mix.served.child.pid))
            engine.seen.clear()  # what is under way still knows its own
            advance(time.monotonic() - started - passed_s, f"{samples[-1].rss_bytes / 2**20:.1f} MiB")
    mix.stopping.set()
    await asyncio.gather(*clients)
    return samples


def _rows(plan: Plan, mix: Mix, samples: list[Sample], left: int) -> list[Row]:
    before, *under_load, after = samples
    asked = dict(mix.asked.most_common())
    load = f"{plan.mixed_s / 60:g} minutes of mixed load"
    answered = counted(
        NAME, f"{load}: every request ended as it must", mix.as_due, "wrong", wrong=mix.wrong[:3], asked=asked
    )
    return [memory(load, under_load, plan.warm_up_s), descriptors(load, before, under_load, after, left), answered]


def memory(load: str, samples: list[Sample], warm_up_s: float) -> Row:
    """Whether resident memory is flat."""
    since_s = samples[0].at_s
    measure = [one.rss_bytes for one in samples if warm_up_s <= one.at_s - since_s < 2 * warm_up_s]
    usual = statistics.median(measure)
    judged = [one.rss_bytes / usual - 1 for one in samples if one.at_s - since_s >= 2 * warm_up_s]
    kept = sum(growth <= MEMORY_SHARE for growth in judged)
    mib = {"start": samples[0].rss_bytes, "warm": usual, "end": samples[-1].rss_bytes}
    text = f"{load}: resident memory within {100 * MEMORY_SHARE:g} % of what it was after a warm-up of {warm_up_s:g} s"
    return Row(
        NAME, text, len(judged), kept, round(100 * max(judged), 2), "% grown", 100 * MEMORY_SHARE, kept == len(judged),
        {**{f"rss_mib_{name}": round(value / 2**20, 2) for name, value in mib.items()}, "settings": SETTINGS},
    )  # fmt: skip


def descriptors(load: str, before: Sample, samples: list[Sample], after: Sample, left: int) -> Row:
    """Whether no descriptor, and no request, is left behind."""
    limit = before.descriptors + 2 * (CLIENTS + UNREADING) + SPARE
    kept = sum(one.descriptors <= limit for one in samples)
    flat = kept == len(samples) and after.descriptors <= before.descriptors + PROBED and not left
    text = (
        f"{load}: open descriptors within two for each client, "
        f"and at rest after at most {PROBED} (kept by probes) more than before"
    )
    more = {"at_rest_before": before.descriptors, "at_rest_after": after.descriptors, "requests_left": left}
    return Row(
        NAME, text, len(samples), kept, max(one.descriptors for one in samples), "descriptors", limit, flat, more
    )
