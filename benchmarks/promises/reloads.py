"""Keys and settings are read again, over and over, while requests run: by SIGHUP, over the admin port, and by themselves."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.promises.client import Request
from benchmarks.promises.keys import key_of, write_tenants
from benchmarks.promises.load import Asked, Load
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row, counted, timed
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine, Script
from benchmarks.promises.waiting import seconds_until
from stages.folders import write_text
from stages.progress import progress

NAME = "reload"
CLIENTS = 16
WAYS = ("SIGHUP", "POST /admin/reload", "the changed file alone")
IN_FORCE_S = 2.0
"""The file of tenants is looked at every second."""
NEVER_S = 10.0
BAD_EVERY = 5
"""Every so many reloads, a file that cannot be used comes first."""
STAY = "stays"
"""The tenant whose requests are the load; the others come and go."""


@dataclass
class Reloading:
    """The files, and what became of each reload."""

    served: Served
    engine: Engine
    place: Place
    tenants: Path
    settings: Path
    in_force_s: list[float] = field(default_factory=list)
    outlived: list[bool] = field(default_factory=list)
    """Whether streams that began with a key that was then removed were answered whole."""
    told: int = 0
    """Reloads by which changed settings had to be taken over."""
    wrong: list[str] = field(default_factory=list)

    async def reload(self, number: int) -> None:
        """Replaces one tenant by the next, and takes the time until that one is let in."""
        way, old, new = WAYS[number % len(WAYS)], f"tenant-{number}", f"tenant-{number + 1}"
        request = Request(Script(next(self.place.ids), 30, 0.01, 0.05), key=key_of(old))
        running = asyncio.create_task(self.served.ask(request.data()))
        await self.engine.of(request.script.id).here.wait()
        await asyncio.sleep(self.place.draw.uniform(0, 0.1))
        if number % BAD_EVERY == 0:
            await self._try_bad_file(old)
        if way != WAYS[2]:
            write_settings(self.settings, number)
            self.told += 1
        write_tenants(self.tenants, {STAY: {}, new: {}})
        started = time.monotonic()
        if way == WAYS[0]:
            self.served.child.send_signal(signal.SIGHUP)
        elif way == WAYS[1]:
            await self.served.reload()
        self.in_force_s.append(await seconds_until(lambda: self._is_let_in(new), started, NEVER_S))
        if await self._status(old) != 401:
            self.wrong.append(f"{way}: a removed key is still let in")
        answer = await running
        self.outlived.append(answer.fulfils(request))
        if not self.outlived[-1]:
            self.wrong.append(f"{way}: a stream of a removed tenant: {answer.told}")

    async def _try_bad_file(self, old: str) -> None:
        """The keys read before must stay in force."""
        write_text(self.tenants, "tenants: [{name: nobody}]")
        answer = await self.served.reload()
        if answer.status != 422 or await self._status(old) != 200:
            self.wrong.append(f"a bad file: {answer.told}")

    async def _is_let_in(self, tenant: str) -> bool:
        return await self._status(tenant) != 401

    async def _status(self, tenant: str) -> int:
        request = Request(Script(next(self.place.ids)), stream=False, key=key_of(tenant))
        return (await self.served.ask(request.data())).status


def write_settings(path: Path, number: int) -> None:
    """A settings file that differs from that of any other number in what can be taken over."""
    write_text(path, f"drift: {{min_drafts: {500 + number}}}\n")


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """Three rows."""
    tenants, settings, log = (place.folder / name for name in ("tenants.yaml", "settings.yaml", "reload.log"))
    write_tenants(tenants, {STAY: {}, "tenant-0": {}})
    write_settings(settings, -1)
    files = ["--tenants", str(tenants), "--config", str(settings)]
    async with Engine().running() as engine, gateway(engine.url, log, place.core, files) as served:
        load, reloading = Load(served, place, key_of(STAY)), Reloading(served, engine, place, tenants, settings)
        clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
        with progress(NAME, plan.tries, "reloads") as advance:
            for number in range(plan.tries):
                await reloading.reload(number)
                advance()
        load.stopping.set()
        await asyncio.gather(*clients)
        return _rows(reloading, load.done, log.read_text(errors="replace"))


def _rows(reloading: Reloading, done: list[Asked], log: str) -> list[Row]:
    ways = f"by {WAYS[0]}, {WAYS[1]} and {WAYS[2]} in turn"
    kept = [not asked.is_lost and not asked.answer.refused for asked in done] + reloading.outlived
    wrong = [asked.answer.told for asked in done if asked.is_lost] + reloading.wrong
    in_force = timed(
        NAME, f"changed tenants in force within {IN_FORCE_S:g} s {ways}, removed ones refused", reloading.in_force_s,
        IN_FORCE_S, wrong=reloading.wrong[:3],
    )  # fmt: skip
    taken = min(reloading.told, log.count("settings: reloaded (drift changed)"))
    return [
        counted(NAME, f"tenants and settings read again under load of {CLIENTS} clients: no request lost", kept,
                reloads=len(reloading.in_force_s), wrong=wrong[:3]),
        in_force if not reloading.wrong else replace(in_force, is_kept=False),
        counted(NAME, "changed settings taken over", [number < taken for number in range(reloading.told)]),
    ]  # fmt: skip
