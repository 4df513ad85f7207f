"""The engines behind the gateway, each with its connections and what is known of it; which of them gets a request."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import TracebackType
from typing import TypeVar

from server.breaker import BreakerState
from server.care import Alert, Intake, look_after
from server.errors import Refusal
from server.facts import Facts
from server.member import Member
from server.pools import NO_DRAFT, NO_SHARES, Candidate, EngineState, Pool, Shares, make_pools, route
from server.prefixes import block_hashes, new_key
from server.settings import GatewaySettings
from server.upstream import EngineFailed, is_failure

Clock = Callable[[], float]
Result = TypeVar("Result")


class Fleet:
    """All engines. The simple case of one and no list is trusted from the start, as whoever named it does.

    Args:
        settings: the gateway's, with all engines.
        intake: what an engine must pass before it gets requests, at first and whenever it comes back; None: nothing.
        clock: seconds, from any beginning.
        draw: random numbers from [0, 1).
    """

    def __init__(
        self,
        settings: GatewaySettings,
        intake: Intake | None = None,
        clock: Clock = time.monotonic,
        draw: Callable[[], float] = random.random,
    ):
        entries = settings.entries()
        self.settings = settings
        self.intake = intake
        self.clock = clock
        self.simple = not settings.engines
        trusted = self.simple or intake is None
        self.members = {entry.name: Member(entry, settings, trusted) for entry in entries}
        self.pools = make_pools([(entry.name, entry.served_model, entry.draft) for entry in entries])
        self.routed: Counter[tuple[str, str]] = Counter()
        """Requests by the pool they were sent to first, and why."""
        self.shares: Callable[[], Shares] = lambda: NO_SHARES
        """Asked at each request which pools get a share of the traffic only; replaced by who decides that."""
        self.alert: Alert = lambda engine, word, line: None
        """Told of engines' turns; replaced by who shows them."""
        self._draw = draw
        self._key = new_key()
        self._caring: list[asyncio.Task[None]] = []

    @property
    def compares_prompts(self) -> bool:
        """Whether it matters which engine has seen the beginning of a prompt."""
        return len(self.members) > 1

    async def open(self) -> None:
        """Makes the connections and begins to look after the engines."""
        for member in self.members.values():
            await member.upstream.open()
            caring = look_after(member, self.settings, lambda: self.intake, self.clock, self.alert)
            self._caring.append(asyncio.create_task(caring))

    async def close(self) -> None:
        """Ends both."""
        for task in self._caring:
            task.cancel()
        await asyncio.gather(*self._caring, return_exceptions=True)
        for member in self.members.values():
            await member.upstream.close()

    def attempt(self, facts: Facts, time_out: asyncio.Timeout | None = None) -> Attempt:
        """The first try of a request; each try knows the following one.

        Args:
            facts: of the request.
            time_out: the gateway's own for the whole request, which tells why a try was cancelled.

        Raises:
            Refusal: there is no engine for it.
        """
        now_s = self.clock()
        hashes = block_hashes(facts.head, self._key)
        states = {name: self._state(member, hashes, now_s) for name, member in self.members.items()}
        asked = replace(facts, model=None) if self.simple else facts
        candidates = route(asked, self.pools, states, self._draw(), self.shares(), self.settings.retry_after_s)
        self.routed[candidates[0].pool.name, candidates[0].reason.value] += 1
        return Attempt(self, candidates[: 1 + self.settings.max_retries], hashes, now_s, time_out)

    def usable(self, member: Member, now_s: float) -> bool:
        """Whether an engine can be given a request. A lone one is only spared while it is away: nobody else is there."""
        health = member.health
        if self.simple:
            return not health.answered or (health.reachable is True and member.fit.is_set())
        admitted = len(self.members) == 1 or member.breaker.admits(now_s)
        return member.fit.is_set() and health.well and admitted

    def can_take(self, engine: str, now_s: float) -> bool:
        """Whether an engine can be given one more request."""
        state = self._state(self.members[engine], (), now_s)
        return state.usable and not state.full

    def unserved(self) -> list[str]:
        """The models that no engine is up for."""
        models = dict.fromkeys(pool.model for pool in self.pools)
        return [model for model in models if not any(map(self._is_up, self._pools_of(model)))]

    async def probed(self) -> None:
        """Waits until every engine has been probed once."""
        for member in self.members.values():
            await member.probed.wait()

    async def until_one_is_fit(self) -> None:
        """Waits for the first engine that is taken in."""
        waiting = [asyncio.ensure_future(member.fit.wait()) for member in self.members.values()]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    def _pools_of(self, model: str) -> list[Pool]:
        return [pool for pool in self.pools if pool.model == model]

    def _is_up(self, pool: Pool) -> bool:
        return any(self._serves(self.members[name]) for name in pool.engines)

    def _serves(self, member: Member) -> bool:
        open_ = len(self.members) > 1 and member.breaker.state(self.clock()) is BreakerState.OPEN
        return member.up and not open_

    def _state(self, member: Member, hashes: tuple[bytes, ...], now_s: float) -> EngineState:
        return EngineState(
            usable=self.usable(member, now_s), in_flight=member.health.running,
            max_in_flight=member.entry.max_in_flight, overlap=lambda: member.prefixes.overlap(hashes),
        )  # fmt: skip


class Attempt:
    """One try of a request at one engine: ``with attempt: …`` counts it in flight and judges the engine at its end.

    Args:
        fleet: whose engines these are.
        candidates: this engine, and those to be tried after it.
        hashes: of the prompt's beginning.
        began_s: when the request was routed.
        time_out: the gateway's own for the whole request; a try that is cancelled by anything else says nothing of its engine.
    """

    def __init__(
        self, fleet: Fleet, candidates: list[Candidate], hashes: tuple[bytes, ...], began_s: float,
        time_out: asyncio.Timeout | None = None,
    ):  # fmt: skip
        self.pool = candidates[0].pool
        self.member = fleet.members[candidates[0].engine]
        self.upstream = self.member.upstream
        self.labels = (self.pool.model, self.pool.draft or NO_DRAFT)
        """Labels `model` and `draft` of the metrics."""
        self._fleet = fleet
        self._rest = candidates[1:]
        self._hashes = hashes
        self._began_s = began_s
        self._time_out = time_out
        self._listening_s: float | None = None
        self._ticket = 0
        self._status: int | None = None
        self._broke_off = False

    @property
    def headers(self) -> dict[str, str]:
        """What the client is told of who answered."""
        return self.pool.headers

    def head(self, status: int) -> None:
        """Notes the status that the engine answered with."""
        self._status = status
        if not is_failure(status):
            self.member.breaker.answer(self._ticket)
        self.progress()

    def broke_off(self) -> None:
        """Notes that the engine ended its answer with an error of its own."""
        self._broke_off = True

    async def hear(self, awaited: Awaitable[Result]) -> Result:
        """Awaits something that the engine must send; when that is cut short, it is known for how long it was silent."""
        self._listening_s = self._fleet.clock()
        result = await awaited
        self._listening_s = None
        return result

    def progress(self) -> None:
        """Notes that bytes came."""
        self.member.health.progress(self._fleet.clock())

    def following(self, after: Exception | None = None) -> Attempt | None:
        """The next try, should this one fail; None when there is no other engine or no more time, or after a refusal.

        Args:
            after: what it failed with. A request that loses its engine may have ended it: it gets one more try, and does not go
                through all of them.
        """
        now_s = self._fleet.clock()
        late = now_s - self._began_s > self._fleet.settings.retry_within_s
        if late or self._refused_by_engine:
            return None
        left = [one for one in self._rest if self._fleet.can_take(one.engine, now_s)]
        if self._lost_engine(after):
            left = left[:1]
        return Attempt(self._fleet, left, self._hashes, self._began_s, self._time_out) if left else None

    def retried(self) -> None:
        """Notes that the request goes on at another engine."""
        self.member.retries += 1

    def is_fault(self, error: BaseException | None) -> bool:
        """Whether an error is the engine's: no answer, a broken one, 500 or above, our key refused; no other 4xx and no 501."""
        if isinstance(error, Refusal):
            return error.status >= 500 and not self._refused_by_engine
        return isinstance(error, EngineFailed)

    @property
    def _refused_by_engine(self) -> bool:
        return self._status is not None and self._status >= 400 and not is_failure(self._status)

    def _lost_engine(self, error: Exception | None) -> bool:
        """Whether the connection broke after the request had gone out."""
        if self._broke_off or is_failure(self._status or 0):
            return False
        return isinstance(error, EngineFailed) or (isinstance(error, Refusal) and error.code == "engine_failed")

    def _was_kept_waiting(self, error: BaseException | None) -> bool:
        """Whether the request's time is up and the engine was silent for half of it or more.

        Neither an engine that was writing until then, nor one that was asked when most of the time had gone, is to blame; and
        while the client is written to, the engine owes nothing.
        """
        allowed_s, since_s = self._fleet.settings.request_timeout_s, self._listening_s
        if self._time_out is None or allowed_s is None or since_s is None:
            return False
        cut_short = isinstance(error, asyncio.CancelledError) and self._time_out.expired()
        return cut_short and self._fleet.clock() - since_s >= allowed_s / 2

    def __enter__(self) -> Attempt:
        now_s = self._fleet.clock()
        self._ticket = self.member.breaker.begin(now_s)
        self.member.health.begin(now_s)
        self.member.prefixes.add(self._hashes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.member.health.end()
        breaker = self.member.breaker
        told = self._broke_off or is_failure(self._status or 0)
        if told or self.is_fault(error) or self._was_kept_waiting(error):
            breaker.fail(self._ticket, self._fleet.clock())
            self.member.nudge.set()
        elif self._status is not None:
            breaker.succeed(self._ticket)
        else:
            breaker.give_up(self._ticket)
