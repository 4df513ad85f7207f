"""What is served, as an OpenAPI document of our own: the relayed routes are plain ASGI, so no framework knows them.

It describes what the gateway itself checks and answers. What else a request may hold is the engine's to judge, and passes.
"""

from __future__ import annotations

import html
from typing import Any

from server import facts
from server.inbound import Route
from server.reporting import HEADER
from server.settings import GatewaySettings

VERSION = "3.1.0"
JSON = "application/json"
EVENTS = "text/event-stream"

FAILURES = {
    "400": "The request is refused: not JSON, or a field is not what it must be.",
    "404": "The engine has no such model or route.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "422": "The engine cannot process the request.",
    "429": "Too many requests.",
    "500": "The engine or the gateway failed on this request.",
    "502": "The engine failed, or its answer broke off.",
    "503": "Starting, draining, overloaded, or without an engine.",
    "504": "The engine was silent for too long.",
}
RETRY = {"429", "503"}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"}, "type": {"type": "string"},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}  # fmt: skip
USAGE = {
    "type": ["object", "null"],
    "properties": {
        "prompt_tokens": {"type": "integer"}, "completion_tokens": {"type": ["integer", "null"]},
        "completion_tokens_details": {
            "type": ["object", "null"],
            "properties": {
                "accepted_prediction_tokens": {"type": "integer", "description": "draft tokens that the target accepted"},
                "rejected_prediction_tokens": {"type": "integer", "description": "draft tokens that it rejected"},
            },
        },
    },
}  # fmt: skip
OBJECT = {"type": "object"}
ANSWERED_BY = {"X-Understudy-Pool": "pool that answered: model/draft", "X-Understudy-Draft": "its draft, or none"}
SPECULATION = {
    "name": facts.HEADER, "in": "header", "required": False, "schema": {"type": "string", "enum": ["on", "off"]},
    "description": "off: only an engine without a draft may answer",
}  # fmt: skip
READY = {
    "name": "model", "in": "query", "required": False, "schema": {"type": "string"}, "description": "ask for this model alone"
}  # fmt: skip


def _content(schema: dict[str, Any], kind: str = JSON) -> dict[str, Any]:
    return {kind: {"schema": schema}}


def _failure(status: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": FAILURES[status],
        "content": _content({"$ref": "#/components/schemas/Error"}),
    }
    if status in RETRY:
        found["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return found


def _failures(*statuses: str) -> dict[str, Any]:
    return {status: _failure(status) for status in statuses or FAILURES}


def _request(route: Route, max_sequences: int) -> dict[str, Any]:
    """The schema of a request body: the fields that the gateway reads."""
    fields: dict[str, Any] = {"model": {"type": ["string", "null"]}, "stream": {"type": ["boolean", "null"]}}
    if route.generates:
        flags = {name: {"type": ["boolean", "null"]} for name in ("include_usage", "continuous_usage_stats")}
        fields["n"] = {"type": ["integer", "null"], "minimum": 1, "maximum": max_sequences}
        fields["stream_options"] = {
            "type": ["object", "null"], "properties": flags, "description": "with `stream: true` only"
        }  # fmt: skip
    if route.name == "chat":
        message = {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}}
        fields["messages"] = {"type": "array", "items": message}
        return {"type": "object", "required": ["messages"], "properties": fields}
    return {"type": "object", "properties": fields}


def _relayed(route: Route, settings: GatewaySettings) -> dict[str, Any]:
    answer: dict[str, Any] = {"type": "object", "properties": {"usage": USAGE}} if route.generates else OBJECT
    content = _content(answer) | ({} if route.name == "embeddings" else _content({"type": "string"}, EVENTS))
    done: dict[str, Any] = {"description": "The engine's answer; with `stream: true` in events.", "content": content}
    if route.generates and settings.acceptance_header:
        told = {
            "schema": {"type": "string"},
            "description": "what speculation did for this answer, unless it is a stream",
        }
        done["headers"] = {HEADER: told}
    return {
        "operationId": route.name, "summary": f"OpenAI's {route.path}, relayed to an engine", "tags": ["relayed"],
        "requestBody": {"required": True, "content": _content(_request(route, settings.max_sequences))},
        "responses": {"200": done, **_failures()},
    }  # fmt: skip


def _shown(
    name: str, summary: str, kind: str = JSON, failures: tuple[str, ...] = (), tag: str = "watching"
) -> dict[str, Any]:
    schema = OBJECT if kind == JSON else {"type": "string"}
    responses: dict[str, Any] = {"200": {"description": summary, "content": _content(schema, kind)}}
    found = {"operationId": name, "summary": summary, "tags": [tag], "responses": responses}
    responses.update(_failures(*failures) if failures else {})
    return found


def document(routes: tuple[Route, ...], settings: GatewaySettings, version: str) -> dict[str, Any]:
    """The document.

    Args:
        routes: those that are relayed.
        settings: what is switched on, and limits.
        version: of the software.
    """
    paths = {route.path: {"post": _relayed(route, settings)} for route in routes}
    shown = {
        "/v1/models": _shown(
            "models", "The models that are served.", failures=("500", "502", "503", "504"), tag="relayed"
        ),
        "/health": _shown("health", "200 as long as the process answers."),
        "/ready": _shown("ready", "200 when requests are taken and an engine answers.", failures=("503",)),
        "/metrics": _shown("metrics", "The metrics, for Prometheus.", "text/plain"),
        "/openapi.json": _shown("openapi", "This document."),
        "/docs": _shown("docs", "This document, for reading.", "text/html"),
        "/admin/canary": _shown("canary", "A canary's draft compared with the one it may replace.", tag="admin"),
    }
    shown["/ready"]["parameters"] = [READY]
    if settings.live_page:
        shown |= {
            "/": _shown("page", "The live page.", "text/html"),
            "/page.css": _shown("page_css", "Its style.", "text/css"),
            "/page.js": _shown("page_js", "Its script.", "text/javascript"),
            "/live.json": _shown("live", "The figures of the live page."),
        }
    paths |= {path: {"get": found} for path, found in shown.items()}
    info = {"title": "Understudy", "version": version, "description": (__doc__ or "").partition("\n\n")[2].strip()}
    return {"openapi": VERSION, "info": info, "paths": paths, "components": {"schemas": {"Error": ERROR}}}


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
