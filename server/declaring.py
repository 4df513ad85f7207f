"""What a request declares: the most tokens its answer may have, and about how many its prompt has.

The gateway has no tokenizer, so a prompt's tokens are estimated from its bytes; token ids are counted. What was set aside
by the estimate is settled by the engine's own count at the end.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

OUTPUT_FIELDS = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "embeddings": (),
    "responses": ("max_output_tokens",),
}
"""Where a route's requests limit their output; the first that is given counts, the first is what is written."""
ENGINE_DEFAULTS = {"completions": 16}
"""What vLLM generates at most when nothing is said; elsewhere as much as fits."""
UNDECLARED = 1024
"""Set aside for output of which nothing is known."""
MESSAGE_TOKENS = 8
"""What a chat template puts around one message, about."""
MEDIA_TOKENS = 1024
"""Set aside for an image or a piece of sound."""
MAX_DEPTH = 8
"""No engine takes prompts that are nested more deeply."""


class Size(NamedTuple):
    """Of a prompt: bytes of text, and tokens that are known without a tokenizer."""

    num_bytes: int = 0
    num_tokens: int = 0


def declared_output(route: str, payload: dict[str, Any]) -> int | None:
    """The most tokens of one sequence; None when the request names no limit."""
    for key in OUTPUT_FIELDS[route]:
        value = payload.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return max(0, value)
    return ENGINE_DEFAULTS.get(route) if OUTPUT_FIELDS[route] else 0


def with_limit(route: str, payload: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """The payload with a limit of its output written in, where it names none and ``max_tokens`` is one."""
    if max_tokens is None or declared_output(route, payload) is not None:
        return payload
    return {**payload, OUTPUT_FIELDS[route][0]: max_tokens}


class Declared(NamedTuple):
    """Tokens of a request: about those of its prompts, and the most that all its sequences may get."""

    prompt: int
    output: int


def declared_tokens(route: str, payload: dict[str, Any], num_sequences: int, bytes_per_token: float) -> Declared:
    """Prompt and output of all sequences.

    Args:
        route: name of the route.
        payload: the request as it goes to the engine.
        num_sequences: n times prompts.
        bytes_per_token: of prompts, in UTF-8.
    """
    output = declared_output(route, payload)
    prompt = estimate_prompt(payload, bytes_per_token)
    return Declared(prompt, num_sequences * (UNDECLARED if output is None else output))


def estimate_prompt(payload: dict[str, Any], bytes_per_token: float) -> int:
    """About how many tokens a request's prompts have."""
    sizes = [_size(payload.get(key)) for key in ("prompt", "input", "instructions")]
    messages = payload.get("messages")
    sizes += map(_message_size, messages if isinstance(messages, list) else ())
    num_bytes = sum(size.num_bytes for size in sizes) + _json_bytes(payload.get("tools"))
    return sum(size.num_tokens for size in sizes) + math.ceil(num_bytes / bytes_per_token)


def _message_size(message: Any) -> Size:
    if not isinstance(message, dict):
        return Size()
    content = _size(message.get("content"))
    return Size(content.num_bytes + _json_bytes(message.get("tool_calls")), content.num_tokens + MESSAGE_TOKENS)


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value)) if value else 0


def _size(prompt: Any, depth: int = 0) -> Size:
    """Of a prompt in any allowed shape: text, token ids, a content part, or a list of those."""
    if isinstance(prompt, str):
        return Size(len(prompt.encode(errors="surrogatepass")))
    if depth > MAX_DEPTH:
        return Size()
    if isinstance(prompt, dict):
        text = prompt.get("text", prompt.get("content"))
        return Size(0, MEDIA_TOKENS) if text is None else _size(text, depth + 1)
    if not isinstance(prompt, list):
        return Size()
    if prompt and isinstance(prompt[0], int):
        return Size(0, len(prompt))
    sizes = [_size(part, depth + 1) for part in prompt]
    return Size(sum(size.num_bytes for size in sizes), sum(size.num_tokens for size in sizes))
