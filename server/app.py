"""The gateway as an application: which routes there are, and how they hang together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from server import errors
from server.access import Access
from server.access_log import AccessLog
from server.client import header
from server.door import Door, Phase
from server.fleet import Fleet
from server.fleet_metrics import FleetMetrics
from server.inbound import Route
from server.metrics import CONTENT_TYPE, Metrics
from server.models_list import MODELS, list_models
from server.openapi import document
from server.pages import Pages, engine_facts
from server.pools import unknown_model
from server.reception import Reception
from server.relay import Relay, broken
from server.reloading import Reloaded
from server.settings import GatewaySettings
from server.tracing import make_tracing
from server.upstream import EngineFailed
from server.watch import Watch

ROUTES = (
    Route("/v1/chat/completions", "chat", generates=True),
    Route("/v1/completions", "completions", generates=True),
    Route("/v1/embeddings", "embeddings", generates=False),
    Route("/v1/responses", "responses", generates=False, unrecorded=True),
)
"""What is relayed. Nothing else of the engine can be reached through the gateway."""

VERSION = metadata.version("understudy")


class Gateway:
    """What the routes share: one door, one reception, one fleet, one set of metrics.

    Raises:
        InputError: the tenants file is bad.
    """

    def __init__(self, settings: GatewaySettings, door: Door, fleet: Fleet):
        self.door = door
        self.fleet = fleet
        self.metrics = Metrics(settings)
        self.metrics.show_queue(lambda: door.admission.queued)
        self.watch = Watch(settings, self.metrics, fleet.pools)
        self.metrics.observe_with(self.watch.see)
        fleet.shares = self.watch.shares
        fleet.alert = self.watch.alert_of_engine
        self.tracing = make_tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
        if self.tracing is not None:
            self.metrics.observe_with(self.tracing.see)
        FleetMetrics(fleet, self.metrics.registry)
        self.access = Access(settings)
        self.reception = Reception(settings, self.access)
        self.access_log = AccessLog() if settings.access_log else None
        self.pages = Pages(self.watch, door, fleet)
        self.reload_settings: Callable[[], Reloaded | None] = lambda: None
        """Reads the settings again; None where they came from no place that can be read again."""
        self.settings = settings

    def relay(self, route: Route) -> Relay:
        """The endpoint of a relayed route."""
        shared = (self.settings, self.fleet, self.door, self.metrics, self.reception, self.access_log)
        return Relay(route, *shared)

    def engines(self) -> list[dict[str, Any]]:
        """The engines and how they are, for whoever runs the gateway."""
        members = self.fleet.members.items()
        return [{**engine_facts(name, member), "url": member.entry.url} for name, member in members]

    async def health(self, request: Request) -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """200 when requests are taken and every model, or the one asked for, has an engine that is up; else 503."""
        refusal = self.door.not_ready() or await self._unserved(request.query_params.get("model"))
        return JSONResponse({"status": "ready"}) if refusal is None else errors.response(refusal)

    async def _unserved(self, model: str | None) -> errors.Refusal | None:
        models = [pool.model for pool in self.fleet.pools]
        if self.fleet.simple:
            model = None  # a lone engine may serve more models than the settings name
        elif model is not None and model not in models:
            return unknown_model(model, models)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.ready_timeout_s):
                await self.fleet.probed()
        unserved = [one for one in self.fleet.unserved() if model in (None, one)]
        if not unserved:
            return None
        message, wait_s = "the engine does not answer", self.settings.retry_after_s
        if not self.fleet.simple:
            message = f"no engine is up for {', '.join(unserved)}"
        return errors.Refusal(503, message, "engine_unreachable", retry_after_s=wait_s)

    async def show_metrics(self, request: Request) -> Response:
        """The metrics, for Prometheus: a hundred tenants' take a quarter of a second to write, in which streams must go on."""
        return Response(await asyncio.to_thread(self.metrics.exposition), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """The engines' lists of models, joined; asked for briefly, so nobody watches whether the client leaves meanwhile."""
        wait_s = self.settings.ready_timeout_s
        refusal = self.door.closed()
        if refusal is not None:
            return errors.response(refusal)
        try:
            tenant = self.access.tenant_of(header(request.scope, b"authorization"))
            return Response(await list_models(self.fleet, tenant.may_use), media_type="application/json")
        except TimeoutError:
            return errors.response(errors.Refusal(504, f"the engine was silent for {wait_s:g} s", "engine_timeout"))
        except (errors.Refusal, EngineFailed) as error:
            return errors.response(error if isinstance(error, errors.Refusal) else broken(self.settings.retry_after_s))


def make_door(settings: GatewaySettings, phase: Phase = Phase.SERVING) -> Door:
    """The door that the settings describe."""
    return Door(
        settings.max_in_flight, settings.retry_after_s, phase, settings.max_queued, settings.queue_wait_s,
        settings.max_reading,
    )  # fmt: skip


def create_app(settings: GatewaySettings, door: Door | None = None, fleet: Fleet | None = None) -> FastAPI:
    """The gateway in front of its engines.

    Args:
        settings: with ``engine_url`` or ``engines`` filled in.
        door: its phase is moved on by whoever supervises the engine; without it the gateway serves from the start.
        fleet: the engines; without it those of the settings, which are trusted.

    Raises:
        InputError: the tenants file is bad.
    """
    gateway = Gateway(settings, door or make_door(settings), fleet or Fleet(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.fleet.open()
        watching = asyncio.create_task(gateway.access.watch())
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await gateway.fleet.close()
        if gateway.access_log is not None:
            gateway.access_log.close()
        if gateway.tracing is not None:
            await asyncio.to_thread(gateway.tracing.close)

    handlers: dict[Any, Any] = {HTTPException: errors.on_http_exception, Exception: errors.on_exception}
    app = FastAPI(
        title="Understudy", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, exception_handlers=handlers,
    )  # fmt: skip
    app.router.routes.extend(Path(route.path, gateway.relay(route), methods=["POST"]) for route in ROUTES)
    plain = {MODELS: gateway.models, "/health": gateway.health, "/ready": gateway.ready}
    if settings.admin_port is None:
        plain["/metrics"] = gateway.show_metrics
    app.router.routes.extend(Path(path, endpoint, methods=["GET"]) for path, endpoint in plain.items())
    app.router.routes.extend(gateway.pages.admin_routes() if settings.admin_port is None else [])
    app.router.routes.extend(gateway.pages.docs_routes(document(ROUTES, settings, VERSION)))
    app.router.routes.extend(gateway.pages.page_routes(settings.admin_port is None) if settings.live_page else [])
    app.state.gateway = gateway
    return app
