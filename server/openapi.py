"""What is served, as an OpenAPI document of our own: the relayed routes are plain ASGI, so no framework knows them.

It describes what the gateway itself checks and answers. What else a request may hold is the engine's to judge, and passes.
Every error has OpenAI's shape; one that comes when a stream has begun is an event of it, before `[DONE]`. An unknown route
is answered with 404, another method with 405, and what is not HTTP with 400.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

from server import openapi_parts as parts
from server.inbound import Route
from server.settings import GatewaySettings

VERSION = "3.1.0"
KEY = "key"
"""Name of the security scheme."""
NOTHING: Mapping[str, str] = {}


def _failures(settings: GatewaySettings, said: Mapping[str, str]) -> dict[str, Any]:
    """From descriptions by status, to which those are added that every route may answer."""
    hidden = set() if parts.has_keys(settings) else parts.KEYS_ONLY
    every = {**parts.ANY_ROUTE, **said}
    return {status: parts.failure(status, every[status]) for status in sorted(every) if status not in hidden}


def _for_keys(settings: GatewaySettings) -> dict[str, Any]:
    return {"security": [{KEY: []}]} if parts.has_keys(settings) else {}


def _relayed(route: Route, settings: GatewaySettings) -> dict[str, Any]:
    done: dict[str, Any] = {
        "description": "The engine's answer; with `stream: true` in events.",
        "headers": parts.ANSWERED_BY | (parts.METADATA if route.name == "embeddings" else {}),
        "content": parts.answer(route),
    }
    if route.generates and settings.acceptance_header:
        done["headers"] = done["headers"] | parts.ACCEPTANCE
    responses = {"200": done, **_failures(settings, parts.FAILURES)}
    every = parts.every_answer(settings)
    responses = {status: {**one, "headers": every | one.get("headers", {})} for status, one in responses.items()}
    return {
        "operationId": route.name, "summary": f"OpenAI's {route.path}, relayed to an engine", "tags": ["relayed"],
        "parameters": [parts.OWN_ID, parts.PROMPT_KIND, *([parts.SPECULATION] if route.samples else [])],
        "requestBody": {"required": True, "content": parts.content(parts.request_body(route, settings))},
        "responses": responses, **_for_keys(settings),
    }  # fmt: skip


class _Shown:
    """Makes the operations that are no relayed routes."""

    def __init__(self, settings: GatewaySettings):
        self._settings = settings

    def __call__(
        self, name: str, summary: str, said: Mapping[str, str] = NOTHING, kind: str = parts.JSON, tag: str = "watching",
        **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        schema = parts.OBJECT if kind == parts.JSON else {"type": "string"}
        done = {"description": summary, "content": parts.content(schema, kind)}
        responses = {"200": done, **_failures(self._settings, said)}
        return {"operationId": name, "summary": summary, "tags": [tag], "responses": responses, **more}

    def of_both_ports(self) -> dict[str, Any]:
        """What is served wherever something is."""
        return {
            "/health": self("health", "200 as long as the process answers."),
            "/ready": self(
                "ready", "200 when requests are taken and every model has an engine that is up.",
                {"404": "No engine serves the model that was asked for.", "503": parts.FAILURES["503"]},
                parameters=[parts.READY_MODEL],
            ),
            "/openapi.json": self("openapi", "This document."),
            "/docs": self("docs", "This document, for reading.", kind="text/html"),
        }  # fmt: skip

    def of_operators(self) -> dict[str, Any]:
        """What moves to the admin port where there is one."""
        return {
            "/metrics": self("metrics", "The metrics, for Prometheus.", kind="text/plain"),
            "/admin/canary": self("canary", "A canary's draft compared with the one it may replace.", tag="admin"),
        }

    def of_people(self) -> dict[str, Any]:
        """The live page."""
        return {
            "/": self("page", "The live page.", kind="text/html"),
            "/page.css": self("page_css", "Its style.", kind="text/css"),
            "/page.js": self("page_js", "Its script.", kind="text/javascript"),
            "/live.json": self("live", "The figures of the live page."),
        }


def document(routes: tuple[Route, ...], settings: GatewaySettings, version: str) -> dict[str, Any]:
    """The document of the gateway's port.

    Args:
        routes: those that are relayed.
        settings: what is switched on, and limits.
        version: of the software.
    """
    made = _Shown(settings)
    paths = {route.path: {"post": _relayed(route, settings)} for route in routes}
    of_the_engine = {status: parts.FAILURES[status] for status in ("401", "502", "503", "504", "default")}
    models = made("models", "The models that are served.", of_the_engine, tag="relayed", **_for_keys(settings))
    shown = {"/v1/models": models, **made.of_both_ports()}
    shown |= made.of_operators() if settings.admin_port is None else {}
    shown |= made.of_people() if settings.live_page else {}
    found = _document("Understudy", paths | {path: {"get": one} for path, one in shown.items()}, version)
    if parts.has_keys(settings):
        found["components"]["securitySchemes"] = {KEY: {"type": "http", "scheme": "bearer"}}
    return found


def admin_document(settings: GatewaySettings, version: str) -> dict[str, Any]:
    """The document of the admin port.

    Args:
        settings: the gateway's.
        version: of the software.
    """
    made = _Shown(settings)
    status = made("status", "The gateway as it is now: phase, requests, tenants without keys, engines.", tag="admin")
    shown = {**made.of_both_ports(), **made.of_operators(), "/admin/status": status}
    paths = {path: {"get": one} for path, one in shown.items()}
    failed = {
        "404": "There is neither a settings file nor a tenants file.",
        "422": "Settings or tenants are bad; what was read of them before stays.",
    }
    paths["/admin/reload"] = {"post": made("reload", "Reads settings and tenants again.", failed, tag="admin")}
    return _document("Understudy admin", paths, version)


def _document(title: str, paths: dict[str, Any], version: str) -> dict[str, Any]:
    info = {"title": title, "version": version, "description": (__doc__ or "").partition("\n\n")[2].strip()}
    return {"openapi": VERSION, "info": info, "paths": paths, "components": {"schemas": {"Error": parts.ERROR}}}


def page(found: dict[str, Any]) -> str:
    """The document as a plain page, without scripts."""
    rows = []
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            statuses = ", ".join(f'<abbr title="{html.escape(one["description"])}">{status}</abbr>'
                                 for status, one in operation["responses"].items())  # fmt: skip
            cells = (f"<code>{method.upper()} {html.escape(path)}</code>", html.escape(operation["summary"]), statuses)
            rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    info = found["info"]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Understudy: routes</title>'
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1><p>{html.escape(info['description'])} "
        'The whole of it: <a href="openapi.json">openapi.json</a>.</p>'
        f"<table><tr><th>route<th>what<th>answers</tr>{''.join(rows)}</table></html>\n"
    )
