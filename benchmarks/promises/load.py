"""Clients that keep their connections and ask one request after the other, until they are told to stop or are turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.promises.client import TIMEOUT_S, Answer, Request, connected, exchange
from benchmarks.promises.plan import Place
from benchmarks.promises.served import Served
from benchmarks.promises.upstream import Script


@dataclass(frozen=True)
class Asked:
    """A request and, once it has ended, its answer."""

    request: Request
    answer: Answer

    @property
    def is_lost(self) -> bool:
        """Whether it was neither answered whole nor refused as it should be."""
        return not self.answer.fulfils(self.request) and not self.answer.refused


@dataclass
class Load:
    """Some clients, and all that they have asked."""

    served: Served
    place: Place
    key: str = ""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    done: list[Asked] = field(default_factory=list)
    under_way: int = 0
    unreachable: int = 0
    """Connections that could not be made."""

    def request(self) -> Request:
        """Any: a stream or not, of up to a second."""
        draw = self.place.draw
        if draw.random() < 0.6:
            return Request(Script(next(self.place.ids), draw.randint(4, 48), 0.02, draw.uniform(0, 0.1)), True, self.key)
        return Request(Script(next(self.place.ids), 8, wait_s=draw.uniform(0.05, 1)), False, self.key)

    async def client(self, goes_on: Callable[[Asked], bool] = lambda _: True) -> None:
        """One client: makes a new connection when its own was closed; ``goes_on`` may end it after an answer."""
        while not self.stopping.is_set():
            try:
                async with connected(self.served.port) as (reader, writer):
                    while not self.stopping.is_set() and not reader.at_eof():
                        asked = await self._ask(reader, writer)
                        if not goes_on(asked):
                            return
            except OSError:
                self.unreachable += 1
                return

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
        request = self.request()
        self.under_way += 1
        try:
            async with asyncio.timeout(TIMEOUT_S):
                asked = Asked(request, await exchange(reader, writer, request.data()))
        finally:
            self.under_way -= 1
        self.done.append(asked)
        return asked
