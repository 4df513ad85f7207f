"""Errors in OpenAI's shape: as a response, as an event of a stream, and as answers of the framework's own errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

OFFERED = "POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses; GET /v1/models"


@dataclass
class Refusal(Exception):
    """A request that is answered with an error instead of being carried out. Never holds a prompt."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after_s: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of the response."""

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


def error_type(status: int) -> str:
    """OpenAI's word for the kind of error that a status stands for."""
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_object(refusal: Refusal) -> dict[str, Any]:
    """``{"error": {message, type, param, code}}``."""
    kind = error_type(refusal.status)
    fields = {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}
    return {"error": fields}


def error_body(refusal: Refusal) -> bytes:
    """The error object as the body of a response."""
    return json.dumps(error_object(refusal)).encode()


def error_event(refusal: Refusal) -> bytes:
    """The error object as the last words of a stream, so that a client never mistakes a failure for the end."""
    return b"data: " + error_body(refusal) + b"\n\ndata: [DONE]\n\n"


def error_headers(refusal: Refusal) -> dict[str, str]:
    """Headers of an error response; ``Retry-After`` where trying again makes sense."""
    wait = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return {**wait, **refusal.headers}


def response(refusal: Refusal) -> Response:
    """The whole error response."""
    return Response(error_body(refusal), refusal.status, error_headers(refusal), "application/json")


def is_error_object(body: bytes) -> bool:
    """True when a body already has OpenAI's shape."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    error = value.get("error") if isinstance(value, dict) else None
    return isinstance(error, dict) and isinstance(error.get("message"), str)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answers what the router refuses: unknown route, wrong method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        refusal = Refusal(404, f"no route {request.scope['path'][:200]!r} here; there are {OFFERED}", "unknown_route")
    elif error.status_code == 405:
        refusal = Refusal(405, f"no {request.method} on this route; there are {OFFERED}", "method_not_allowed")
    else:
        refusal = Refusal(error.status_code, str(error.detail), "http_error")
    answer = response(refusal)
    answer.headers.update(error.headers or {})
    return answer


async def on_exception(request: Request, error: Exception) -> Response:
    """Answers a fault of our own; the traceback goes to the log, the client learns nothing of it."""
    return response(Refusal(500, "the gateway failed on this request", "internal_error"))
