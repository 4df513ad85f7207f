"""The gateway as an application: which routes there are, and how they hang together."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from server.inbound import Route
from server.metrics import CONTENT_TYPE, Metrics
from server.reception import Reception
from server.relay import BROKEN, Relay
from server.settings import GatewaySettings
from server.upstream import EngineFailed, Upstream, finish, passed_headers, read_all, refusal_from

ROUTES = (
    Route("/v1/chat/completions", "chat", generates=True),
    Route("/v1/completions", "completions", generates=True),
    Route("/v1/embeddings", "embeddings", generates=False),
    Route("/v1/responses", "responses", generates=False, unrecorded=True),
)
"""What is relayed. Nothing else of the engine can be reached through the gateway."""

MODELS = "/v1/models"


class Gateway:
    """What the routes share: one door, one reception, one upstream, one set of metrics.

    Raises:
        InputError: the tenants file is bad.
    """

    def __init__(self, settings: GatewaySettings, door: Door):
        self.door = door
        self.upstream = Upstream(settings)
        self.metrics = Metrics(settings)
        self.metrics.show_queue(lambda: door.admission.queued)
        self.access = Access(settings)
        self.reception = Reception(settings, self.access)
        self.access_log = AccessLog(settings.draft_name) if settings.access_log else None
        self.settings = settings

    def relay(self, route: Route) -> Relay:
        """The endpoint of a relayed route."""
        shared = (self.settings, self.upstream, self.door, self.metrics, self.reception, self.access_log)
        return Relay(route, *shared)

    async def engines(self) -> list[dict[str, Any]]:
        """The engines and whether they answer, for whoever runs the gateway."""
        healthy = await self.upstream.is_healthy()
        return [{"url": self.settings.engine_url, "draft": self.settings.draft_name, "healthy": healthy}]

    async def health(self, request: Request) -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """200 when requests are taken and the engine answers; 503 while starting, draining, or without an engine."""
        refusal = self.door.not_ready()
        if refusal is None and not await self.upstream.is_healthy():
            message, wait_s = "the engine does not answer", self.settings.retry_after_s
            refusal = errors.Refusal(503, message, "engine_unreachable", retry_after_s=wait_s)
        return JSONResponse({"status": "ready"}) if refusal is None else errors.response(refusal)

    async def show_metrics(self, request: Request) -> Response:
        """The metrics, for Prometheus."""
        return Response(self.metrics.exposition(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> Response:
        """The engine's list of models; asked for briefly, so nobody watches whether the client leaves meanwhile."""
        wait_s = self.settings.ready_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                return await self._models(header(request.scope, b"authorization"))
        except TimeoutError:
            return errors.response(errors.Refusal(504, f"the engine was silent for {wait_s:g} s", "engine_timeout"))
        except (errors.Refusal, EngineFailed) as error:
            return errors.response(error if isinstance(error, errors.Refusal) else BROKEN)

    async def _models(self, authorization: str | None) -> Response:
        refusal = self.door.closed()
        if refusal is not None:
            raise refusal
        tenant = self.access.tenant_of(authorization)
        response = await self.upstream.send("GET", MODELS)
        try:
            body = await read_all(response)
        finally:
            finish(response)
        refusal = refusal_from(response.status, body, MODELS, self.settings.retry_after_s)
        if refusal is not None:
            raise refusal
        return Response(without_folders(body, tenant.may_use), response.status, passed_headers(response))


def without_folders(body: bytes, may_use: Callable[[str], bool] = lambda model: True) -> bytes:
    """The engine's list of models without the folders that they were loaded from (vLLM's ``root``).

    Args:
        body: the engine's answer.
        may_use: which models are shown.

    Raises:
        EngineFailed: the engine's answer is not a list of models.
    """
    try:
        answer = json.loads(body)
        answer["data"] = [model for model in answer["data"] if may_use(model["id"])]
        for model in answer["data"]:
            model["root"] = model["id"]
    except (ValueError, TypeError, KeyError) as error:
        raise EngineFailed("the engine's list of models cannot be read") from error
    return json.dumps(answer).encode()


def make_door(settings: GatewaySettings, phase: Phase = Phase.SERVING) -> Door:
    """The door that the settings describe."""
    return Door(
        settings.max_in_flight, settings.retry_after_s, phase, settings.max_queued, settings.queue_wait_s,
        settings.max_reading,
    )  # fmt: skip


def create_app(settings: GatewaySettings, door: Door | None = None) -> FastAPI:
    """The gateway in front of ``settings.engine_url``.

    Args:
        settings: with ``engine_url`` filled in.
        door: its phase is moved on by whoever supervises the engine; without it the gateway serves from the start.

    Raises:
        InputError: the tenants file is bad.
    """
    gateway = Gateway(settings, door or make_door(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.upstream.open()
        watching = asyncio.create_task(gateway.access.watch())
        yield
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await gateway.upstream.close()
        if gateway.access_log is not None:
            gateway.access_log.close()

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
    app.state.gateway = gateway
    return app
