"""What the OpenAPI document is put together from: bodies, headers and failures, as plain dictionaries."""

from __future__ import annotations

from typing import Any

from server import facts
from server.declaring import OUTPUT_FIELDS
from server.inbound import NOT_FORWARDED, Route
from server.kinds import PROMPT_HEADER
from server.known_fields import KNOWN
from server.reception import REQUEST_ID
from server.reporting import HEADER
from server.settings import GatewaySettings

JSON = "application/json"
EVENTS = "text/event-stream"
BYTES = "application/octet-stream"

FAILURES = {
    "400": "The request is refused: not JSON, or a field is not what it must be.",
    "401": "No API key was given, or it is not known.",
    "403": "This key may not use the model.",
    "404": "There is no such model, or the engine has no such route.",
    "408": "The headers or the body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not declared as JSON.",
    "422": "The engine cannot process the request.",
    "429": "Too many requests, or more than this key may use.",
    "431": "The request line and headers are too large.",
    "500": "The engine or the gateway failed on this request.",
    "502": "The engine failed, or its answer cannot be read.",
    "503": "Starting, draining, overloaded, without an engine, or the engine's answer broke off.",
    "504": "The engine was silent for too long, or the answer took too long.",
    "default": "Another status with which the engine refuses a request.",
}
ANY_ROUTE = {
    "408": "The headers did not arrive in time.",
    "431": FAILURES["431"],
    "500": "The gateway failed on this request.",
}
"""What every route may answer; the first two come before there is one."""
KEYS_ONLY = {"401", "403"}
"""What nobody gets where no tenants are configured."""

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message"],
            "description": "the gateway's own have all four; an engine's are passed on as they are",
            "properties": {
                "message": {"type": "string"}, "type": {"type": ["string", "null"]},
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
STREAM_OPTIONS_NEED_A_STREAM = [
    {"required": ["stream"], "properties": {"stream": {"const": True}}},
    {"properties": {"stream_options": {"type": "null"}}},
]

SPECULATION = {
    "name": facts.HEADER, "in": "header", "required": False, "schema": {"type": "string", "enum": ["on", "off"]},
    "description": "off: only an engine without a draft may answer",
}  # fmt: skip
PROMPT_KIND = {
    "name": PROMPT_HEADER, "in": "header", "required": False, "schema": {"type": "string"},
    "description": "kind of the prompt, of those that the gateway's settings name; any other counts by its route",
}  # fmt: skip
OWN_ID = {
    "name": "X-Request-Id", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "an id of the client's own, of up to 128 letters, digits and ._:-; any other is replaced",
}  # fmt: skip
READY_MODEL = {
    "name": "model", "in": "query", "required": False, "schema": {"type": "string"},
    "description": "ask for this model alone, where engines are listed",
}  # fmt: skip


def _told(description: str, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {"schema": {"type": "string", **schema}, "description": description, "required": required}


ANSWERED_BY = {
    "X-Understudy-Pool": _told("pool that answered: model/draft", required=True),
    "X-Understudy-Draft": _told("its draft, or none", required=True),
}
METADATA = {"Metadata": _told("vLLM's, with `encoding_format: bytes`: how to read them")}
ACCEPTANCE = {HEADER: _told("what speculation did for this answer, unless it is a stream or has no record")}
NO_RETRY = {"X-Should-Retry": _told("`false` where the same request will be refused again", const="false")}
OF_FAILURES = {
    "401": {**NO_RETRY, "WWW-Authenticate": _told("`Bearer`", required=True)},
    "403": NO_RETRY,
    "429": {**NO_RETRY, "Retry-After": _told("seconds, where it helps to wait", pattern=r"^\d+$")},
    "503": {"Retry-After": _told("seconds", required=True, pattern=r"^\d+$")},
}


def content(schema: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """A body of one of these media types."""
    return {kind: {"schema": schema} for kind in kinds or (JSON,)}


def failure(status: str, description: str) -> dict[str, Any]:
    """The response with an error."""
    found = {"description": description, "content": content({"$ref": "#/components/schemas/Error"})}
    return found | ({"headers": OF_FAILURES[status]} if status in OF_FAILURES else {})


def has_keys(settings: GatewaySettings) -> bool:
    """Whether tenants are configured, so that a key is needed."""
    return settings.tenants_file is not None or settings.tenants is not None


def every_answer(settings: GatewaySettings) -> dict[str, Any]:
    """Headers of whatever a relayed route answers."""
    found = {REQUEST_ID.title(): _told("the request's id: the client's own, or a new one")}
    if not has_keys(settings):
        return found
    for kind in ("requests", "tokens"):
        where = f"{kind} per minute, for tenants with such a limit"
        found[f"X-Ratelimit-Limit-{kind.title()}"] = _told(where, pattern=r"^\d+$")
        found[f"X-Ratelimit-Remaining-{kind.title()}"] = _told(f"what is left of the {where}", pattern=r"^\d+$")
        found[f"X-Ratelimit-Reset-{kind.title()}"] = _told(f"when all of it is back, as `120ms` or `6m0s`: {where}")
    return found


def request_body(route: Route, settings: GatewaySettings) -> dict[str, Any]:
    """The schema of a request body: the fields that the gateway reads; in strict mode all that may be in it."""
    fields: dict[str, Any] = {"model": {"type": ["string", "null"]}, "stream": {"type": ["boolean", "null"]}}
    fields |= {name: {"description": "not forwarded"} for name in NOT_FORWARDED}
    whole_number = {"type": ["integer", "null"], "description": "limit of the output"}
    fields |= dict.fromkeys(OUTPUT_FIELDS[route.name], whole_number)
    if route.samples:
        refused = {"description": "refused with 400 where every engine has a draft"}
        fields |= {"min_p": refused, "logit_bias": refused}
    found: dict[str, Any] = {"type": "object", "properties": fields}
    if route.generates:
        fields |= _of_routes_that_generate(settings)
        found["anyOf"] = STREAM_OPTIONS_NEED_A_STREAM
    if route.name == "chat":
        message = {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}}
        fields["messages"] = {"type": "array", "items": message}
        found["required"] = ["messages"]
    if settings.strict:
        found["properties"] = {name: fields.get(name, {}) for name in sorted(KNOWN[route.name])}
        found["additionalProperties"] = False
    return found


def _of_routes_that_generate(settings: GatewaySettings) -> dict[str, Any]:
    flags = {name: {"type": ["boolean", "null"]} for name in ("include_usage", "continuous_usage_stats")}
    return {
        "n": {
            "type": ["integer", "null"], "minimum": 1, "maximum": settings.max_sequences,
            "description": "times the number of prompts; the limit is for both together",
        },
        "stream_options": {
            "type": ["object", "null"], "properties": flags, "description": "with `stream: true` only",
        },
    }  # fmt: skip


def answer(route: Route) -> dict[str, Any]:
    """The body of an answer that is no error."""
    if route.name == "embeddings":
        return content(OBJECT) | content({"type": "string", "format": "binary"}, BYTES)
    schema: dict[str, Any] = {"type": "object", "properties": {"usage": USAGE}} if route.generates else OBJECT
    return content(schema) | {
        EVENTS: {}
    }  # no schema: readers do not agree on whether it would be of the events or of all
