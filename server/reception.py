"""What each request passes before it is carried out: its id, whose it is, what that tenant may still use.

`Visit` is one request's. It is made from the headers alone, asked step by step, and settled at the end; its headers go
out with whatever answer there is.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import Scope

from server.access import NO_RETRY, Access
from server.client import header
from server.declaring import declared_tokens
from server.errors import Refusal
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange
from server.inbound import Inbound, Route
from server.limits import NEVER, Booking, Budget, Exceeded, Limit, Window
from server.settings import GatewaySettings
from server.tenants import NOBODY, Tenant

REQUEST_ID = "x-request-id"
SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id(scope: Scope) -> str:
    """The client's own id of its request where it is harmless to repeat, else a new one."""
    given = header(scope, REQUEST_ID.encode())
    return given if given and SANE_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"


def duration(seconds: float) -> str:
    """As OpenAI's headers write times: ``120ms``, ``8.64s``, ``6m0s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    shown = f"{math.ceil(rest * 100) / 100:g}s"
    return f"{int(minutes)}m{shown}" if minutes else shown


def _budget_headers(kind: str, window: Window | None, now: float) -> dict[str, str]:
    if window is None:
        return {}
    return {
        f"x-ratelimit-limit-{kind}": str(window.limit),
        f"x-ratelimit-remaining-{kind}": str(window.remaining(now)),
        f"x-ratelimit-reset-{kind}": duration(window.reset_s(now)),
    }


def _too_much(error: Exceeded, retry_after_s: int) -> Refusal:
    """What a client is told whose tenant has run out of something."""
    given = f"the limit is {error.allowed} {error.limit.value}, this request asks for {error.asked}"
    if error.wait_s == NEVER:
        advice = "which never fits; ask for less (a shorter prompt, a smaller limit of the output)"
        return Refusal(429, f"{given}, {advice}", "request_too_large", headers=NO_RETRY)
    if error.limit is Limit.CONCURRENT:
        message = f"the limit is {error.allowed} requests at the same time; wait for one to end"
        return Refusal(429, message, "too_many_requests", retry_after_s=retry_after_s)
    wait_s = math.ceil(error.wait_s)
    return Refusal(429, f"{given}; try again in {wait_s} s", "rate_limit_exceeded", retry_after_s=wait_s)


class Visit:
    """One request, seen by what is due to its tenant. Made by `Reception.receive`."""

    def __init__(self, reception: Reception, route: Route, scope: Scope):
        self.request_id = request_id(scope)
        self.arrived_at = time.time()
        """In seconds since the epoch, for the access log."""
        self.tenant: Tenant = NOBODY
        self.model: str | None = None
        """What was asked for."""
        self.refusal: Refusal | None = None
        """What it was refused with, if it was."""
        self._reception = reception
        self._route = route
        self._booking: Booking | None = None
        self._read_tokens: int | None = None
        """What its prompt is estimated at, of a request for a stream."""
        try:
            self.tenant = reception.access.tenant_of(header(scope, b"authorization"))
        except Refusal as refusal:
            self.refusal = refusal

    def enter(self) -> None:
        """Takes its place among the tenant's requests.

        Raises:
            Refusal: 401 without a good key, 429 when the tenant has too many requests.
        """
        if self.refusal is not None:
            raise self.refusal
        budget = self._reception.budget_of(self.tenant)
        if budget is None:
            return
        try:
            self._booking = budget.enter(self._reception.now())
        except Exceeded as error:
            raise _too_much(error, self._reception.retry_after_s) from None

    def declare(self, inbound: Inbound) -> None:
        """Sets aside what the request may take.

        Raises:
            Refusal: 403 for a model that is not the tenant's, 429 when its tokens do not fit.
        """
        self.model = inbound.model
        self._check_model(inbound.model or self._reception.only_model)
        if self._booking is None or self.tenant.tokens_per_minute is None:
            return
        bytes_per_token = self._reception.bytes_per_token
        declared = declared_tokens(self._route.name, inbound.payload, inbound.num_sequences, bytes_per_token)
        if inbound.payload.get("stream"):
            self._read_tokens = declared.prompt
        try:
            self._booking.reserve(sum(declared), self._reception.now())
        except Exceeded as error:
            raise _too_much(error, self._reception.retry_after_s) from None

    def end(self, exchange: Exchange) -> None:
        """Settles with the tenant, once."""
        if self._booking is not None:
            counts = exchange.status != "429" and not exchange.status.startswith("5")
            self._booking.end(_used_tokens(exchange, self._read_tokens), counts, self._reception.now())

    def headers(self) -> dict[str, str]:
        """What goes out with the answer, whatever that is."""
        budget = self._reception.budget_of(self.tenant)
        if budget is None:
            return {REQUEST_ID: self.request_id}
        now = self._reception.now()
        return {
            REQUEST_ID: self.request_id,
            **_budget_headers("requests", budget.requests, now),
            **_budget_headers("tokens", budget.tokens, now),
        }

    def _check_model(self, model: str | None) -> None:
        if model is None or self.tenant.may_use(model):
            return
        allowed = ", ".join(self.tenant.models or ())
        message = f"this key may not use the model {model[:100]!r}; it may use: {allowed}"
        raise Refusal(403, message, "model_not_allowed", "model", headers=NO_RETRY)


def _used_tokens(exchange: Exchange, read_tokens: int | None) -> int | None:
    """What a finished request has taken, in tokens; None where nobody counted them.

    Of a stream that was left or cut, the prompt counts as it was estimated, and each chunk that had come as a token (it holds one
    at least): nobody reads for nothing by leaving before the end. How far an answer in one piece had come is not known.

    Args:
        read_tokens: of the prompt; None: the answer comes in one piece.
    """
    if exchange.usage is not None:
        return exchange.usage.prompt_tokens + exchange.usage.output_tokens
    if exchange.succeeded:
        return None
    if exchange.status not in (CLIENT_GONE, STREAM_FAILED) or exchange.served_by is None:
        return 0
    return None if read_tokens is None else read_tokens + exchange.num_chunks


class Reception:
    """Receives requests: tenants by key, and their budgets, which outlive a reload.

    Args:
        settings: of the gateway.
        access: knows the tenants.
        now: the time in seconds.
    """

    def __init__(self, settings: GatewaySettings, access: Access, now: Callable[[], float] = time.monotonic):
        self.access = access
        self.now = now
        self.retry_after_s = settings.retry_after_s
        self.bytes_per_token = settings.prompt_bytes_per_token
        models = {pool.model for pool in settings.pools()}
        self.only_model = models.pop() if len(models) == 1 else None
        """What is meant by a request that names no model; None: routing refuses it, because there are several."""
        self._budgets: dict[str, Budget] = {}
        self._follow()
        access.changed.append(self._follow)

    def receive(self, route: Route, scope: Scope) -> Visit:
        """A request whose headers have come."""
        return Visit(self, route, scope)

    def budget_of(self, tenant: Tenant) -> Budget | None:
        """A tenant's budget; None where it has no limits."""
        return self._budgets.get(tenant.name)

    def status(self) -> list[dict[str, object]]:
        """The tenants with what they use and what is left, without keys."""
        return [self._status_of(tenant) for tenant in self.access.tenants]

    def _follow(self) -> None:
        """Gives the tenants in force their limits; bookings of those that are gone end on their own."""
        before, self._budgets = self._budgets, {}
        for tenant in self.access.tenants:
            budget = before.get(tenant.name, Budget())
            budget.allow(tenant.requests_per_minute, tenant.tokens_per_minute, tenant.concurrent_requests)
            if not self.access.is_open:
                self._budgets[tenant.name] = budget

    def _status_of(self, tenant: Tenant) -> dict[str, object]:
        budget, now = self._budgets.get(tenant.name), self.now()
        shown: dict[str, object] = {"name": tenant.name, "keys": len(tenant.keys), "models": tenant.models}
        if budget is None:
            return shown
        shown |= {"running": budget.running, "concurrent_requests": budget.concurrent}
        for kind, window in (("requests", budget.requests), ("tokens", budget.tokens)):
            left = None if window is None else window.remaining(now)
            shown |= {f"{kind}_per_minute": window and window.limit, f"{kind}_remaining": left}
        return shown
