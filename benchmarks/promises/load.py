"""Clients that keep their connections and ask one request after the other, until they are told to stop or are turned away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.promises.client import TIMEOUT_S, Answer, Request, connected, exchange
from benchmarks.promises.plan import Place
from benchmarks.promises.served import Served
from benchmarks.promises.upstream import Script

WHILE = 48
"""Answers."""


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

    def request(self) -> Request:
        """Any: a stream or not, of up to a second."""
        draw = self.place.draw
        if draw.random() < 0.6:
            return Request(
                Script(next(self.place.ids), draw.randint(4, 48), 0.02, draw.uniform(0, 0.1)), True, self.key
            )
        return Request(Script(next(self.place.ids), 8, wait_s=draw.uniform(0.05, 1)), False, self.key)

    async def has_begun(self) -> bool:
        """Whether it has been going for a while: more answers than the clients of any promise."""
        return len(self.done) >= WHILE

    async def client(self, goes_on: Callable[[Asked], bool] = lambda _: True) -> None:
        """One client: makes a new connection when its own was closed; ``goes_on`` may end it after an answer."""
        while not self.stopping.is_set():
            try:
                async with connected(self.served.port) as (reader, writer):
                    while not self.stopping.is_set() and not reader.at_eof():
                        asked = await self._ask(reader, writer)
                        if not goes_on(asked):
                            return
            except OSError:  # nobody listens any more
                return

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
        request = self.request()
        sent_s = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await exchange(reader, writer, request.data())
        except TimeoutError:
            answer = Answer(sent_s, error=f"no end within {TIMEOUT_S:g} s", e2e_s=TIMEOUT_S)
            writer.close()
        self.done.append(Asked(request, answer))
        return self.done[-1]
