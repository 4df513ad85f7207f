"""One relayed route: a client's request in, the engine's answer out, byte for byte, for as long as both are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace

import aiohttp
from starlette.types import Receive, Scope, Send

from server import reporting
from server.acceptance import AcceptanceRecord, read_acceptance, read_usage
from server.access_log import AccessLog
from server.client import ClientGone, Cut, Reply, check_content_type, header, read_body, unless_gone
from server.door import Door
from server.errors import Refusal
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange
from server.facts import HEADER, Facts, wants_no_draft
from server.fleet import Attempt, Fleet
from server.inbound import Inbound, Route, check
from server.json_text import JsonText
from server.kinds import PROMPT_HEADER, prompt_kind_of
from server.metrics import Metrics
from server.reception import Reception, Visit
from server.settings import GatewaySettings
from server.stream import StreamReader
from server.upstream import (
    EngineFailed,
    finish,
    is_failure,
    is_stream,
    passed_headers,
    read_all,
    read_some,
    refusal_from,
)

logger = logging.getLogger("understudy.gateway")

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
SPECULATION, KIND = HEADER.lower().encode(), PROMPT_HEADER.lower().encode()
ENDING_S = 1.0
"""How long an engine gets to end its encoding after the last event; its place is held meanwhile."""


def broken(retry_after_s: int) -> Refusal:
    """What is said of an answer that broke off before the client had any of it: it may come whole from the next attempt."""
    return Refusal(503, "the engine's answer broke off; try again later", "engine_failed", retry_after_s=retry_after_s)


class Relay:
    """The ASGI endpoint of one route.

    Args:
        route: which one.
        settings: limits and times.
        fleet: the engines.
        door: shared by all routes.
        metrics: told of each request's begin and end.
        reception: knows the tenants and what each may use.
        access_log: told of each request's end; None: there is none.
    """

    def __init__(
        self, route: Route, settings: GatewaySettings, fleet: Fleet, door: Door, metrics: Metrics,
        reception: Reception, access_log: AccessLog | None = None,
    ):  # fmt: skip
        self._route = route
        self._settings = settings
        self._fleet = fleet
        self._door = door
        self._metrics = metrics
        self._reception = reception
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relays one request. Whatever ends it, its place and the gauge are given back once."""
        exchange, reply = Exchange(), Reply(send, self._settings.client_stall_s)
        visit = self._reception.receive(self._route, scope)
        exchange.tenant, reply.headers = visit.tenant.name, visit.headers
        if self._settings.otlp_endpoint:
            exchange.traceparent = header(scope, b"traceparent")
        self._metrics.begin(self._route.name, exchange)
        try:
            await self._handle(scope, receive, reply, exchange, visit)
        except (ClientGone, asyncio.CancelledError) as error:
            exchange.settle(CLIENT_GONE)
            if isinstance(error, asyncio.CancelledError):  # the server is shutting down and waits no longer
                raise
        finally:
            exchange.settle("500")  # a fault of ours, when nothing else was found
            visit.end(exchange)
            self._metrics.end(self._route.name, exchange)
            if self._access_log is not None:
                self._access_log.note(self._route.name, visit, exchange)

    async def _handle(self, scope: Scope, receive: Receive, reply: Reply, exchange: Exchange, visit: Visit) -> None:
        try:
            with self._door.enter():
                visit.enter()
                self._door.check(exchange.tenant)
                check_content_type(scope)
                settings = self._settings
                limit, timeout_s = settings.max_body_bytes, settings.body_timeout_s
                with self._door.read():
                    body = await read_body(scope, receive, limit, timeout_s, self._door.cut)
                exchange.admitted_s = exchange.clock()
                inbound = check(
                    self._route, body, settings.max_sequences, self._fleet.compares_prompts, settings.strict,
                    visit.tenant.default_max_tokens,
                )  # fmt: skip
                exchange.num_sequences, exchange.kind = inbound.num_sequences, inbound.kind
                exchange.prompt_kind = prompt_kind_of(header(scope, KIND), settings.prompt_kinds, self._route.name)
                visit.declare(inbound)
                del body  # a long prompt need not be held three times for as long as its answer takes
                inbound = replace(inbound, payload={})
                facts = self._facts(inbound, header(scope, SPECULATION))
                await unless_gone(receive, self._door.cut, self._in_turn(inbound, facts, reply, exchange))
        except (Refusal, EngineFailed, Cut) as error:
            if exchange.status:  # the last event has gone out: what came after it is nobody's business
                return await reply.end()
            refusal = visit.refusal = self._refusal(error)
            self._metrics.refused(self._route.name, exchange, refusal.code)
            logger.info("%s: %s", self._route.name, refusal)
            status = STREAM_FAILED if reply.started else str(refusal.status)
            await reply.refuse(refusal)
            exchange.settle(status)

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        return self._door.shutting_down() if isinstance(error, Cut) else broken(self._settings.retry_after_s)

    def _facts(self, inbound: Inbound, speculation: str | None) -> Facts:
        """The body's facts, with what the client says of speculation in a header."""
        if not self._route.samples or not wants_no_draft(speculation) or inbound.facts.plain_because:
            return inbound.facts
        return replace(inbound.facts, plain_because="header")

    async def _in_turn(self, inbound: Inbound, facts: Facts, reply: Reply, exchange: Exchange) -> None:
        """Carries out the exchange when it is this tenant's turn, and within the time there is for it."""
        timeout_s = self._settings.request_timeout_s
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit, self._door.place(exchange.tenant, exchange.queue) as place:
                try:
                    await self._exchange(inbound, facts, reply, exchange, limit)
                    place.served = exchange.succeeded
                except (Refusal, EngineFailed):
                    place.served = False
                    raise
        except TimeoutError:
            if not limit.expired():
                raise
            raise Refusal(504, f"the answer took longer than the {timeout_s:g} s allowed", "request_timeout") from None

    async def _exchange(
        self, inbound: Inbound, facts: Facts, reply: Reply, exchange: Exchange, limit: asyncio.Timeout
    ) -> None:
        """Tries one engine after the other, until an answer has begun or nobody is left."""
        attempt: Attempt | None = self._fleet.attempt(facts, limit)
        exchange.record_due = self._route.samples
        while attempt is not None:
            try:
                with attempt:
                    self._metrics.move(self._route.name, exchange, attempt.labels)
                    await self._ask(attempt, inbound, reply, exchange)
                return
            except (Refusal, EngineFailed) as error:
                following = attempt.following(error) if attempt.is_fault(error) and not reply.started else None
                if following is None:
                    raise
                attempt.retried()
                attempt = following

    async def _ask(self, attempt: Attempt, inbound: Inbound, reply: Reply, exchange: Exchange) -> None:
        response = await exchange.wait(attempt.hear(attempt.upstream.send("POST", self._route.path, inbound.body)))
        try:
            attempt.head(response.status)
            if is_failure(response.status) and attempt.following() is not None:
                raise EngineFailed(f"status {response.status}")
            if is_stream(response):
                await self._relay_stream(attempt, response, inbound, reply, exchange)
            else:
                await self._relay_whole(attempt, response, reply, exchange)
        finally:
            finish(response)

    async def _relay_stream(
        self, attempt: Attempt, response: aiohttp.ClientResponse, inbound: Inbound, reply: Reply, exchange: Exchange
    ) -> None:
        headers = {**passed_headers(response), **STREAM_HEADERS, **attempt.headers}
        events = StreamReader(self._route, inbound, exchange, self._settings, self._metrics)
        while not events.done and (data := await exchange.wait(attempt.hear(read_some(response)))):
            attempt.progress()
            passed = events.feed(data)
            if events.engine_failed:
                attempt.broke_off()
            if events.opening_error is not None and not reply.started:
                raise events.opening_error  # the engine checks some things only after it has promised a stream
            if passed:
                await exchange.wait(reply.write(passed) if reply.started else reply.begin(200, headers, passed))
        events.check_end()
        exchange.settle(STREAM_FAILED if events.failed else "200")
        with contextlib.suppress(EngineFailed, TimeoutError):
            async with asyncio.timeout(ENDING_S):
                await read_all(response)  # nothing but the end of the encoding: then the connection can be used again
        await reply.end()

    async def _relay_whole(
        self, attempt: Attempt, response: aiohttp.ClientResponse, reply: Reply, exchange: Exchange
    ) -> None:
        body = await exchange.wait(attempt.hear(read_all(response)))
        retry_after_s = self._settings.retry_after_s
        refusal = refusal_from(response.status, body, self._route.path, retry_after_s)
        if refusal is not None:
            raise refusal
        headers = {**passed_headers(response), **attempt.headers}
        if response.status in (429, 503):
            headers.setdefault("retry-after", str(retry_after_s))
        if self._route.generates and response.status == 200:
            body, told = self._read_answer(body, exchange)
            headers.update(told)
        await exchange.wait(reply.whole(response.status, headers, body))
        exchange.settle(str(response.status))

    def _read_answer(self, body: bytes, exchange: Exchange) -> tuple[bytes, dict[str, str]]:
        """Notes usage and acceptance; the body and the headers that tell the client of them."""
        answer = JsonText.read(body)
        if answer is None:
            return body, {}
        exchange.usage, exchange.acceptance = read_usage(answer.values), read_acceptance(answer.values)
        record, headers = exchange.acceptance, {}
        if self._settings.acceptance_header and isinstance(record, AcceptanceRecord):
            headers[reporting.HEADER] = reporting.header_value(record)
        told = reporting.with_details(answer, record) if self._settings.usage_details else None
        return told or body, headers
