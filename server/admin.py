"""What only whoever runs the gateway sees, on a port of its own: metrics, health, status, and reading keys again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path

from server import errors
from server.openapi import admin_document

if TYPE_CHECKING:
    from server.app import Gateway

OFFERED = "GET /metrics, /health, /ready, /admin/status, /admin/canary, /openapi.json, /docs; POST /admin/reload"


class Admin:
    """The routes of the admin port."""

    def __init__(self, gateway: Gateway):
        self._gateway = gateway

    async def status(self, request: Request) -> Response:
        """The gateway as it is now."""
        gateway = self._gateway
        return JSONResponse(
            {
                "phase": gateway.door.phase.value,
                "requests": self._requests(),
                "tenants": gateway.reception.status(),
                "tenants_file": self._tenants_file(),
                "engines": gateway.engines(),
            }
        )

    async def reload(self, request: Request) -> Response:
        """Reads settings and tenants again, as SIGHUP does, each for itself; 422 when one of them is bad and its old one stays."""
        access, settings = self._gateway.access, self._gateway.reload_settings()
        read_tenants = access.path is not None
        if settings is None and not read_tenants:
            message = "there is nothing to read again; start with --config FILE or --tenants FILE"
            return errors.response(errors.Refusal(404, message, "no_file"))
        bad_settings = settings.refused if settings is not None else None
        bad_tenants = None if not read_tenants or access.reload() else access.refused
        if bad_settings is not None or bad_tenants is not None:
            found = {"settings": (settings is not None, bad_settings), "tenants": (read_tenants, bad_tenants)}
            code = "bad_settings" if bad_settings is not None else "bad_tenants_file"
            return errors.response(errors.Refusal(422, _outcomes(found), code))
        names = [tenant.name for tenant in access.tenants] if read_tenants else None
        return JSONResponse({"settings": settings and settings.as_dict(), "tenants": names})

    def _requests(self) -> dict[str, Any]:
        door, admission = self._gateway.door, self._gateway.door.admission
        return {
            "under_way": door.running, "reading": door.reading, "at_the_engine": admission.running,
            "queued": admission.queued, "max_in_flight": admission.max_running, "max_queued": admission.max_queued,
            "mean_service_s": admission.service_s,
        }  # fmt: skip

    def _tenants_file(self) -> dict[str, Any] | None:
        access = self._gateway.access
        if access.path is None:
            return None
        return {"path": str(access.path), "read_at": access.loaded_at, "refused": access.refused}


def _outcomes(found: dict[str, tuple[bool, str | None]]) -> str:
    """One line on what was read and what was refused, by what it is: whether there was a file, and what is wrong with it."""
    read = {what: bad for what, (there, bad) in found.items() if there}
    return "; ".join(f"{what}: read" if bad is None else f"{what}: refused ({bad})" for what, bad in read.items())


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"no {request.method} {request.scope['path'][:200]!r} on the admin port; there are {OFFERED}"
    allowed = error.headers or {}
    return errors.response(errors.Refusal(error.status_code, message, "unknown_route", headers=allowed))


def create_admin_app(gateway: Gateway, version: str) -> FastAPI:
    """The application of the admin port, beside the gateway's own.

    Args:
        gateway: whose it is.
        version: of the software.
    """
    admin = Admin(gateway)
    handlers: dict[Any, Any] = {HTTPException: _on_http_exception, Exception: errors.on_exception}
    app = FastAPI(
        title="Understudy admin", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        exception_handlers=handlers,
    )  # fmt: skip
    seen = {
        "/metrics": gateway.show_metrics, "/health": gateway.health, "/ready": gateway.ready,
        "/admin/status": admin.status,
    }  # fmt: skip
    app.router.routes.extend(Path(path, endpoint, methods=["GET"]) for path, endpoint in seen.items())
    app.router.routes.extend(gateway.pages.admin_routes())
    app.router.routes.extend(gateway.pages.docs_routes(admin_document(gateway.settings, version)))
    app.router.routes.append(Path("/admin/reload", admin.reload, methods=["POST"]))
    return app
