"""One relayed route: a client's request in, the engine's answer out, byte for byte, for as long as both are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import aiohttp
from starlette.types import Receive, Scope, Send

from server.acceptance import read_acceptance, read_usage
from server.access_log import AccessLog
from server.client import ClientGone, Cut, Reply, check_content_type, read_body, unless_gone
from server.door import Door
from server.errors import Refusal
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange
from server.inbound import Inbound, Route, check
from server.metrics import Metrics
from server.reception import Reception, Visit
from server.settings import GatewaySettings
from server.sse import json_of
from server.stream import StreamReader
from server.upstream import EngineFailed, Upstream, finish, is_stream, passed_headers, read_all, read_some, refusal_from

logger = logging.getLogger("understudy.gateway")

STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
BROKEN = Refusal(502, "the engine's answer broke off", "engine_failed")


class Relay:
    """The ASGI endpoint of one route.

    Args:
        route: which one.
        settings: limits and times.
        upstream: the engine.
        door: shared by all routes.
        metrics: told of each request's begin and end.
        reception: knows the tenants and what each may use.
        access_log: told of each request's end; None: there is none.
    """

    def __init__(
        self, route: Route, settings: GatewaySettings, upstream: Upstream, door: Door, metrics: Metrics,
        reception: Reception, access_log: AccessLog | None = None,
    ):  # fmt: skip
        self._route = route
        self._settings = settings
        self._upstream = upstream
        self._door = door
        self._metrics = metrics
        self._reception = reception
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relays one request. Whatever ends it, its place and the gauge are given back once."""
        exchange, reply = Exchange(), Reply(send, self._settings.client_stall_s)
        visit = self._reception.receive(self._route, scope)
        exchange.tenant, reply.headers = visit.tenant.name, visit.headers
        self._metrics.begin(self._route.name, exchange.tenant)
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
                    self._route, body, settings.max_sequences, settings.strict, visit.tenant.default_max_tokens
                )
                exchange.num_sequences = inbound.num_sequences
                visit.declare(inbound)
                await unless_gone(receive, self._door.cut, self._in_turn(inbound, reply, exchange))
        except (Refusal, EngineFailed, Cut) as error:
            refusal = visit.refusal = self._refusal(error)
            self._metrics.refused(self._route.name, exchange.tenant, refusal.code)
            logger.info("%s: %s", self._route.name, refusal)
            status = STREAM_FAILED if reply.started else str(refusal.status)
            await reply.refuse(refusal)
            exchange.settle(status)

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, Refusal):
            return error
        return self._door.shutting_down() if isinstance(error, Cut) else BROKEN

    async def _in_turn(self, inbound: Inbound, reply: Reply, exchange: Exchange) -> None:
        """Carries out the exchange when it is this tenant's turn, and within the time there is for it."""
        timeout_s = self._settings.request_timeout_s
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit, self._door.place(exchange.tenant, exchange.queue):
                await self._exchange(inbound, reply, exchange)
        except TimeoutError:
            if not limit.expired():
                raise
            raise Refusal(504, f"the answer took longer than the {timeout_s:g} s allowed", "request_timeout") from None

    async def _exchange(self, inbound: Inbound, reply: Reply, exchange: Exchange) -> None:
        exchange.record_due = self._route.generates or self._route.unrecorded
        response = await exchange.wait(self._upstream.send("POST", self._route.path, inbound.body))
        try:
            if is_stream(response):
                await self._relay_stream(response, inbound, reply, exchange)
            else:
                await self._relay_whole(response, reply, exchange)
        finally:
            finish(response)

    async def _relay_stream(
        self, response: aiohttp.ClientResponse, inbound: Inbound, reply: Reply, exchange: Exchange
    ) -> None:
        headers = {**passed_headers(response), **STREAM_HEADERS}
        events = StreamReader(self._route, inbound, exchange, self._settings.max_event_bytes, self._metrics)
        while not events.done and (data := await exchange.wait(read_some(response))):
            passed = events.feed(data)
            if events.opening_error is not None and not reply.started:
                raise events.opening_error  # the engine checks some things only after it has promised a stream
            if passed:
                await exchange.wait(reply.write(passed) if reply.started else reply.begin(200, headers, passed))
        events.check_end()
        exchange.settle(STREAM_FAILED if events.failed else "200")
        with contextlib.suppress(EngineFailed):
            await read_all(response)  # nothing but the end of the encoding: then the connection can be used again
        await reply.end()

    async def _relay_whole(self, response: aiohttp.ClientResponse, reply: Reply, exchange: Exchange) -> None:
        body = await exchange.wait(read_all(response))
        retry_after_s = self._settings.retry_after_s
        refusal = refusal_from(response.status, body, self._route.path, retry_after_s)
        if refusal is not None:
            raise refusal
        headers = passed_headers(response)
        if response.status in (429, 503):
            headers.setdefault("retry-after", str(retry_after_s))
        if self._route.generates and response.status == 200:
            payload = json_of(body) or {}
            exchange.usage, exchange.acceptance = read_usage(payload), read_acceptance(payload)
        await exchange.wait(reply.whole(response.status, headers, body))
        exchange.settle(str(response.status))
