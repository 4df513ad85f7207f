"""A tenant's tokens per minute, with 64 clients that ask for more than there is.

It is judged at the engine, which knows what it has generated and what the requests that it still has may make it generate.
Every round has a tenant of its own and takes less than a minute, so all of it counts.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from benchmarks.promises.client import Answer, Request, connected, exchange
from benchmarks.promises.keys import key_of, write_tenants
from benchmarks.promises.plan import Place, Plan
from benchmarks.promises.rows import Row
from benchmarks.promises.served import Served, gateway
from benchmarks.promises.upstream import Engine, Script, Seen
from server.declaring import declared_tokens
from server.limits import MINUTE_S
from stages.errors import EngineError
from stages.progress import progress

NAME = "token-budget"
CLIENTS = 64
TOKENS_PER_MINUTE = 3000
MOST_OUTPUT = 80
"""Largest `max_tokens` of a request; the engine generates between 2 and that."""
SETTINGS = {"max_in_flight": 256, "prompt_bytes_per_token": 3.0}
LEAVING_SHARE, FAILING_SHARE = 0.1, 0.05
"""Of requests: those whose clients leave early, and those that the engine fails on."""


@dataclass
class Ledger:
    """What the engine has been made to do for one tenant."""

    running: int = 0
    """Tokens that the requests it has declared."""
    taken: int = 0
    """Tokens of requests that are over."""
    most: int = 0
    """The largest sum of both."""
    largest: int = 0
    """Of all declarations."""
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    """Answers that should not have come."""

    def arrive(self, tokens: int) -> None:
        """A request that declared so much is at the engine."""
        self.running += tokens
        self.largest = max(self.largest, tokens)
        self.most = max(self.most, self.running + self.taken)

    def end(self, tokens: int, took: int) -> None:
        """It is over."""
        self.running -= tokens
        self.taken += took
        self.most = max(self.most, self.running + self.taken)


@dataclass(frozen=True)
class Round:
    """One tenant's."""

    tenant: str
    served: Served
    engine: Engine
    place: Place
    ledger: Ledger = field(default_factory=Ledger)

    async def all_clients(self) -> Ledger:
        """Lets all clients ask until each has been refused."""
        watching = set[asyncio.Task[None]]()
        await asyncio.gather(*(self._client(watching) for _ in range(CLIENTS)))
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        return self.ledger

    async def _client(self, watching: set[asyncio.Task[None]]) -> None:
        async with connected(self.served.port) as (reader, writer):
            while True:
                request, leaves = self._request()
                watching.add(asyncio.create_task(self._watch(request)))
                if leaves:
                    await self._leave(request)
                    continue
                answer = await exchange(reader, writer, request.data())
                if answer.status == 429:
                    self.ledger.refused += 1
                    return
                self._judge(request, answer)

    def _judge(self, request: Request, answer: Answer) -> None:
        if not (answer.status == 500 if request.script.fault else answer.fulfils(request)):
            self.ledger.wrong.append(answer.told)

    def _request(self) -> tuple[Request, bool]:
        draw, stream = self.place.draw, self.place.draw.random() < 0.5
        limit = draw.randint(10, MOST_OUTPUT)
        chunks = draw.randint(2, limit if not stream else min(limit, 16))
        fault = "500" if draw.random() < FAILING_SHARE else ""
        script = Script(next(self.place.ids), chunks, 0.005 * stream, draw.uniform(0.005, 0.03), fault)
        return Request(script, stream, key_of(self.tenant), limit), draw.random() < LEAVING_SHARE

    async def _leave(self, request: Request) -> None:
        async with connected(self.served.port) as (_, writer):
            writer.write(request.data())
            await asyncio.sleep(self.place.draw.uniform(0, 0.08))

    async def _watch(self, request: Request) -> None:
        """Books a request when the engine gets it, and when it is over."""
        seen: Seen = self.engine.of(request.script.id)
        await seen.here.wait()
        self.ledger.arrive(declared(request))
        await seen.over.wait()
        self.ledger.end(declared(request), 0 if request.script.fault else seen.tokens)


def declared(request: Request) -> int:
    """What the gateway takes the request to declare."""
    return declared_tokens("chat", request.payload(), 1, float(SETTINGS["prompt_bytes_per_token"]))


async def attempt(plan: Plan, place: Place) -> list[Row]:
    """One row: every round is a try."""
    tenants, file = [f"tenant-{number}" for number in range(plan.tries)], place.folder / "tenants.yaml"
    write_tenants(file, {name: {"tokens_per_minute": TOKENS_PER_MINUTE} for name in tenants})
    ledgers: list[Ledger] = []
    async with (
        Engine().running() as engine,
        gateway(engine.url, place.folder / "budget.log", place.core, ["--tenants", str(file)], **SETTINGS) as served,
    ):
        with progress(NAME, plan.tries, "rounds") as advance:
            for tenant in tenants:
                started = time.monotonic()
                ledgers.append(await Round(tenant, served, engine, place).all_clients())
                if time.monotonic() - started > MINUTE_S:
                    raise EngineError(
                        "a round took longer than the minute that its budget is for; use a faster machine"
                    )
                engine.seen.clear()
                advance()
    return [_row(ledgers)]


def _row(ledgers: list[Ledger]) -> Row:
    """A round is a try only where somebody was refused; what was booked and not used up shows that it is not refused too early."""
    tried = [ledger for ledger in ledgers if ledger.refused]
    over = [ledger.most - TOKENS_PER_MINUTE for ledger in tried]
    kept = [extra <= ledger.largest and not ledger.wrong for extra, ledger in zip(over, tried, strict=True)]
    text = f"tokens per minute, {CLIENTS} parallel clients: never exceeded by more than one request's declared amount"
    more = {
        "largest_declared": max((ledger.largest for ledger in tried), default=0),
        "least_used": min((ledger.most for ledger in tried), default=0), "tokens_per_minute": TOKENS_PER_MINUTE,
        "refused": sum(ledger.refused for ledger in ledgers),
        "wrong": [text for ledger in ledgers for text in ledger.wrong][:3], "settings": SETTINGS,
    }  # fmt: skip
    worst = max(0, *over) if over else None
    return Row(
        NAME,
        text,
        len(tried),
        sum(kept),
        worst,
        "tokens over",
        more["largest_declared"],
        all(kept) and bool(kept),
        more,
    )
