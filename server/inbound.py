"""A client's request, read and checked as far as the gateway needs it, and rewritten for the engine.

The gateway checks what it acts on itself (JSON, ``stream``, ``stream_options``, ``n``, limits of the output) and what
would make the engine fail instead of refuse; everything else is the engine's to judge.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn

from server.declaring import OUTPUT_FIELDS, with_limit
from server.errors import Refusal
from server.facts import Facts, read_facts
from server.kinds import Kind, kind_of
from server.known_fields import check_fields

NOT_FORWARDED = ("priority",)
"""Fields that belong to whoever runs the engine, not to its clients."""


@dataclass(frozen=True)
class Route:
    """A route that is relayed."""

    path: str
    name: str
    """Label `route` of the metrics."""
    generates: bool
    """True where usage, acceptance and ``[DONE]`` are expected."""
    unrecorded: bool = False
    """True where answers are sampled too, but tell nothing of speculation: each counts as a missing record."""

    @property
    def samples(self) -> bool:
        """True where tokens are drawn, so that a draft can come in."""
        return self.generates or self.unrecorded


@dataclass(frozen=True)
class Inbound:
    """A checked request."""

    body: bytes
    """What the engine gets: written anew, so that both read the same (of a key given twice, the last counts)."""
    wants_usage: bool
    """Whether the client asked for the usage chunk of its stream."""
    num_sequences: int
    """n times prompts."""
    facts: Facts = field(default_factory=Facts)
    """What decides which engine gets it."""
    kind: Kind = Kind.PLAIN
    """Which kind of output it asks for."""
    payload: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the body says; not to be shown."""

    @property
    def model(self) -> str | None:
        """The model that was asked for; None: whichever is served."""
        return self.payload.get("model") or None


def _wrong(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    return Refusal(400, message, code, param)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _wrong(f"the body is not JSON ({error.msg} at {where})", code="malformed_json") from None
    except RecursionError:
        raise _wrong("the body is nested too deeply", code="malformed_json") from None
    except ValueError:
        message = "the body is not JSON (not UTF-8, NaN or Infinity, or a number too long)"
        raise _wrong(message, code="malformed_json") from None
    if not isinstance(payload, dict):
        raise _wrong(f"the body must be a JSON object, given {_kind(payload)}", code="malformed_json")
    return payload


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _dump(payload: dict[str, Any]) -> bytes:
    """JSON as UTF-8; refuses lone surrogates, which no tokenizer can read."""
    try:
        return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise _wrong("the body holds half of a surrogate pair, which is no character", code="malformed_json") from None
    except ValueError:
        raise _wrong("the body holds a number that is too large", code="malformed_json") from None
    except RecursionError:
        raise _wrong("the body is nested too deeply", code="malformed_json") from None


def _check_type(payload: dict[str, Any], key: str, kinds: type | tuple[type, ...], wanted: str) -> Any:
    value = payload.get(key)
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if value is not None and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
        raise _wrong(f"'{key}' must be {wanted}, given {_kind(value)}", key, "wrong_type")
    return value


def _num_prompts(prompt: Any) -> int:
    """How many prompts ``prompt`` holds: a text or a list of token ids is one, a list of either is several."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


def _whole_number(payload: dict[str, Any], key: str) -> int | None:
    """A field's whole number; in JSON, 2.0 is one, too."""
    value = payload.get(key)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    number: int | None = _check_type(payload, key, int, "a whole number")
    return number


def _with_whole_limits(route: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The payload with the limits of its output as whole numbers: what vLLM would take for one must be booked as one."""
    return payload | {key: _whole_number(payload, key) for key in OUTPUT_FIELDS[route] if key in payload}


def _num_sequences(payload: dict[str, Any], max_sequences: int) -> int:
    n = _whole_number(payload, "n")
    n = 1 if n is None else n
    sequences = n * _num_prompts(payload.get("prompt"))
    if n < 1 or sequences > max_sequences:
        message = f"'n' times the number of prompts must be from 1 to {max_sequences}, given {sequences}"
        raise _wrong(message, "n")
    return sequences


def _stream_options(payload: dict[str, Any]) -> dict[str, Any]:
    options = _check_type(payload, "stream_options", dict, "an object")
    if options is None:
        return {}
    if not payload.get("stream"):
        raise _wrong("'stream_options' goes with \"stream\": true only", "stream_options")
    for key in ("include_usage", "continuous_usage_stats"):
        _check_type(options, key, bool, "true or false")
    return options


def _ask_for_usage(payload: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Asks for the usage chunk; without letting the client's other wish become true by that alone."""
    asked = {**options, "include_usage": True}
    if not options.get("include_usage"):
        asked.pop("continuous_usage_stats", None)
    return {**payload, "stream_options": asked}


def check(
    route: Route, body: bytes, max_sequences: int, with_head: bool = False, strict: bool = False,
    default_max_tokens: int | None = None,
) -> Inbound:  # fmt: skip
    """Reads a request body and decides what the engine gets.

    Args:
        route: where it came in.
        body: as it came.
        max_sequences: largest n times prompts.
        with_head: read the prompt's beginning, where routing asks for it.
        strict: refuse fields that the engine does not know.
        default_max_tokens: limit of the output where the request names none.

    Raises:
        Refusal: 400, with a message that names the field and what it must be, never its content.
    """
    payload = _parse(body)
    _check_type(payload, "model", str, "a string")
    _check_type(payload, "stream", bool, "true or false")
    if strict:
        check_fields(route.name, payload)
    if route.unrecorded and payload.get("background"):
        raise _wrong(
            "'background' is not served: its answer could not be fetched here, and would count as no request under way",
            "background",
            "unsupported_parameter",
        )
    if route.samples and payload.get("logprob_token_ids") is not None:
        raise _wrong(
            "'logprob_token_ids' is not served: beside requests for log-probabilities in the same step vLLM 0.32 gives them this "
            "one's tokens, or ends",
            "logprob_token_ids",
            "unsupported_parameter",
        )
    payload = with_limit(route.name, _with_whole_limits(route.name, payload), default_max_tokens)
    facts = read_facts(payload, route.samples, with_head)
    forwarded = {key: value for key, value in payload.items() if key not in NOT_FORWARDED}
    if not route.generates:
        return Inbound(_dump(forwarded), wants_usage=True, num_sequences=1, facts=facts, payload=payload)
    sequences = _num_sequences(payload, max_sequences)
    options = _stream_options(payload)
    wants_usage = bool(options.get("include_usage"))
    if payload.get("stream") and not wants_usage:
        forwarded = _ask_for_usage(forwarded, options)
    return Inbound(_dump(forwarded), wants_usage, sequences, facts, kind_of(payload), payload)
