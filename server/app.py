"""The gateway as an application: which routes there are, and how they hang together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from server import errors
from server.door import Door
from server.inbound import Route
from server.metrics import CONTENT_TYPE, Metrics
from server.openapi import document
from server.relay import BROKEN, Relay
from server.settings import GatewaySettings
from server.upstream import EngineFailed, Upstream, finish, passed_headers, read_all, refusal_from
from server.watch import Watch
from server.watching import Watching

ROUTES = (
    Route("/v1/chat/completions", "chat", generates=True),
    Route("/v1/completions", "completions", generates=True),
    Route("/v1/embeddings", "embeddings", generates=False),
    Route("/v1/responses", "responses", generates=False, unrecorded=True),
)
"""What is relayed. Nothing else of the engine can be reached through the gateway."""

MODELS = "/v1/models"
VERSION = metadata.version("understudy")


class Gateway:
    """What the routes share: one door, one upstream, one set of metrics."""

    def __init__(self, settings: GatewaySettings, door: Door):
        self.door = door
        self.upstream = Upstream(settings)
        self.metrics = Metrics(settings)
        self.watch = Watch(settings, self.metrics)
        self.metrics.observe_with(self.watch.see)
        self.settings = settings

    def relay(self, route: Route) -> Relay:
        """The endpoint of a relayed route."""
        return Relay(route, self.settings, self.upstream, self.door, self.metrics)

    async def health(self, request: Request) -> Response:
        """200 as long as the process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """200 when requests are taken and the engine answers; 503 while starting, draining, or without an engine."""
        refusal = self.door.closed()
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
                return await self._models()
        except TimeoutError:
            return errors.response(errors.Refusal(504, f"the engine was silent for {wait_s:g} s", "engine_timeout"))
        except (errors.Refusal, EngineFailed) as error:
            return errors.response(error if isinstance(error, errors.Refusal) else BROKEN)

    async def _models(self) -> Response:
        refusal = self.door.closed()
        if refusal is not None:
            raise refusal
        response = await self.upstream.send("GET", MODELS)
        try:
            body = await read_all(response)
        finally:
            finish(response)
        refusal = refusal_from(response.status, body, MODELS, self.settings.retry_after_s)
        if refusal is not None:
            raise refusal
        return Response(without_folders(body), response.status, passed_headers(response))


def without_folders(body: bytes) -> bytes:
    """The engine's list of models without the folders that they were loaded from (vLLM's ``root``).

    Raises:
        EngineFailed: the engine's answer is not a list of models.
    """
    try:
        answer = json.loads(body)
        for model in answer["data"]:
            model["root"] = model["id"]
    except (ValueError, TypeError, KeyError) as error:
        raise EngineFailed("the engine's list of models cannot be read") from error
    return json.dumps(answer).encode()


def create_app(settings: GatewaySettings, door: Door | None = None) -> FastAPI:
    """The gateway in front of ``settings.engine_url``.

    Args:
        settings: with ``engine_url`` filled in.
        door: its phase is moved on by whoever supervises the engine; without it the gateway serves from the start.
    """
    gateway = Gateway(settings, door or Door(settings.max_in_flight, settings.retry_after_s))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.upstream.open()
        yield
        await gateway.upstream.close()

    handlers: dict[Any, Any] = {HTTPException: errors.on_http_exception, Exception: errors.on_exception}
    app = FastAPI(
        title="Understudy", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, exception_handlers=handlers,
    )  # fmt: skip
    app.router.routes.extend(Path(route.path, gateway.relay(route), methods=["POST"]) for route in ROUTES)
    watching = {"/health": gateway.health, "/ready": gateway.ready, "/metrics": gateway.show_metrics}
    plain = {MODELS: gateway.models, **watching}
    app.router.routes.extend(Path(path, endpoint, methods=["GET"]) for path, endpoint in plain.items())
    watching_routes = Watching(settings.served_model_name, gateway.watch, gateway.door)
    app.router.routes.extend(watching_routes.admin_routes())
    app.router.routes.extend(watching_routes.docs_routes(document(ROUTES, settings, VERSION)))
    app.router.routes.extend(watching_routes.page_routes() if settings.live_page else [])
    app.state.gateway = gateway
    return app
