"""What routing needs to know of a request, read from its body without judging it: that is the engine's to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from server.errors import Refusal
from server.prefixes import HEAD_BYTES

HEADER = "X-Understudy-Speculation"
MIN_P = 1e-5
"""vLLM takes a smaller ``min_p`` for none (``SamplingParams._validate_spec_decode``); an empty ``logit_bias`` likewise."""

DEPTH = 5
"""How deep texts lie in a prompt at most: messages, message, parts, part, text."""


@dataclass(frozen=True)
class Facts:
    """Of one request."""

    model: str | None = None
    plain_because: str | None = None
    """What only an engine without a draft can do for it: `min_p`, `logit_bias`, or `header`; None: any engine will do."""
    head: bytes = field(default=b"", repr=False)
    """The first bytes of its prompt."""


def _number(value: Any) -> float:
    """As vLLM reads numbers: texts that hold one are taken; 0 for what it will refuse itself."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def refused_by_drafts(payload: dict[str, Any]) -> str | None:
    """The first field that vLLM refuses wherever a draft is configured; None when there is none."""
    if _number(payload.get("min_p")) > MIN_P:
        return "min_p"
    return "logit_bias" if payload.get("logit_bias") else None


def _texts(prompt: Any, depth: int = DEPTH) -> Iterator[str]:
    """The pieces of a prompt in order, without building the whole."""
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        yield json.dumps(prompt[: HEAD_BYTES // 4])
    elif isinstance(prompt, list) and depth:
        for part in prompt:
            yield from _texts(part, depth - 1)
    elif isinstance(prompt, dict) and depth:
        for key in ("role", "text", "content"):
            yield from _texts(prompt.get(key), depth - 1)


def _head(payload: dict[str, Any]) -> bytes:
    head = bytearray()
    prompt = next((payload[key] for key in ("messages", "prompt", "input") if payload.get(key)), None)
    for text in _texts(prompt):
        head += text[:HEAD_BYTES].encode("utf-8", "replace") + b"\n"
        if len(head) >= HEAD_BYTES:
            break
    return bytes(head[:HEAD_BYTES])


def read_facts(payload: dict[str, Any], samples: bool, with_head: bool) -> Facts:
    """The facts of a request's body.

    Args:
        payload: the body.
        samples: whether its route generates tokens; where nothing is sampled, a draft refuses nothing.
        with_head: whether the prompt's beginning is wanted.
    """
    model = payload.get("model")
    head = _head(payload) if with_head else b""
    return Facts(model if isinstance(model, str) else None, refused_by_drafts(payload) if samples else None, head)


def wants_no_draft(header: str | None) -> bool:
    """What the client says of speculation in a header of its own.

    Raises:
        Refusal: 400 when it says something else than on or off.
    """
    word = "on" if header is None else header.strip().lower()
    if word not in ("on", "off"):
        raise Refusal(400, f"the header {HEADER} must be on or off, given {word[:40]!r}", "invalid_header")
    return word == "off"
