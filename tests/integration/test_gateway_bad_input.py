"""Whatever a client sends: an error in OpenAI's shape, of its own fault, and never a 500. And prompts in no log."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.integration.conftest import Served

pytestmark = pytest.mark.engine

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "x"}]

BAD: list[tuple[str, Any]] = [
    (COMPLETIONS, b"{"),
    (COMPLETIONS, b"[]"),
    (COMPLETIONS, b"\xff"),
    (COMPLETIONS, {}),
    (COMPLETIONS, {"prompt": None}),
    (COMPLETIONS, {"prompt": []}),
    (COMPLETIONS, {"prompt": [[]]}),
    (COMPLETIONS, {"prompt": ""}),
    (COMPLETIONS, {"prompt": {"a": 1}}),
    (COMPLETIONS, {"prompt": 5}),
    (COMPLETIONS, {"prompt": [-1]}),
    (COMPLETIONS, {"prompt": [10**9]}),
    (COMPLETIONS, {"prompt": [10**30]}),
    (COMPLETIONS, {"prompt": [1.5]}),
    (COMPLETIONS, {"prompt": ["a", 1]}),
    (COMPLETIONS, {"prompt": "x", "model": "nobody"}),
    (COMPLETIONS, {"prompt": "x", "model": 7}),
    (COMPLETIONS, {"prompt": "x " * 2000}),
    (COMPLETIONS, {"prompt": "x" * 200_000}),
    (COMPLETIONS, {"prompt": "\ud800"}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": -1}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "many"}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 100_000}),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 10**30}),
    (COMPLETIONS, {"prompt": "x", "temperature": "hot"}),
    (COMPLETIONS, {"prompt": "x", "temperature": -1}),
    (COMPLETIONS, {"prompt": "x", "top_p": 5}),
    (COMPLETIONS, {"prompt": "x", "top_k": -7}),
    (COMPLETIONS, {"prompt": "x", "n": 0}),
    (COMPLETIONS, {"prompt": "x", "n": 10_000}),
    (COMPLETIONS, {"prompt": "x", "seed": "s"}),
    (COMPLETIONS, {"prompt": "x", "seed": 10**30}),
    (COMPLETIONS, {"prompt": "x", "logprobs": 10_000}),
    (COMPLETIONS, {"prompt": "x", "logprobs": -5}),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"a": 1}}),
    (COMPLETIONS, {"prompt": "x", "logit_bias": {"1": 5}}),
    (COMPLETIONS, {"prompt": "x", "min_p": 0.5}),
    (COMPLETIONS, {"prompt": "x", "stop": 5}),
    (COMPLETIONS, {"prompt": "x", "stream": "yes"}),
    (COMPLETIONS, {"prompt": "x", "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"prompt": "x", "response_format": {"type": "nonsense"}}),
    (COMPLETIONS, {"prompt": "x", "structured_outputs": {"regex": "("}}),
    (COMPLETIONS, {"prompt_embeds": "AAAA"}),
    (COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": -5}),
    (COMPLETIONS, {"prompt": "x", "allowed_token_ids": [10**9]}),
    (COMPLETIONS, {"prompt": "x", "stop_token_ids": ["a"]}),
    (COMPLETIONS, {"prompt": "x", "bad_words": [5]}),
    (COMPLETIONS, {"prompt": "x", "echo": True, "stream": True, "logprobs": 99_999}),
    (CHAT, {}),
    (CHAT, {"messages": []}),
    (CHAT, {"messages": "x"}),
    (CHAT, {"messages": [5]}),
    (CHAT, {"messages": [{"role": "user", "content": {"a": 1}}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
    (CHAT, {"messages": USER, "tools": "x"}),
    (CHAT, {"messages": USER, "tool_choice": "required"}),
    (CHAT, {"messages": USER, "top_logprobs": 5}),
    (CHAT, {"messages": USER, "response_format": {"type": "json_schema"}}),
    (CHAT, {"messages": USER, "chat_template": "{{ 1/0 }}"}),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 2000}]}),
    ("/v1/embeddings", {"input": "x"}),
    ("/v1/nothing", {}),
    ("/metrics", {}),
]


def post(served: Served, path: str, body: Any) -> tuple[int, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, raw, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def verdict(served: Served, path: str, body: Any) -> str:
    """Empty when the answer is as it must be."""
    status, answer = post(served, path, body)
    try:
        error = json.loads(answer)["error"]
        shaped = isinstance(error["message"], str) and {"type", "param", "code"} <= set(error)
    except (ValueError, KeyError, TypeError):
        shaped = False
    return "" if 400 <= status < 500 and shaped else f"{path} {str(body)[:80]}: {status} {answer[:200]!r}"


def test_bad_requests_are_the_clients_fault_and_told_in_openais_shape(served: Served) -> None:
    wrong = [text for path, body in BAD if (text := verdict(served, path, body))]
    assert not wrong, "\n".join(wrong)
    assert post(served, COMPLETIONS, {"prompt": "x", "max_tokens": 1})[0] == 200


def test_prompts_are_in_no_log(served: Served) -> None:
    secret = "zebra-crossing-4711"
    for more in ({}, {"temperature": "hot"}, {"model": "nobody"}, {"max_tokens": -1}, {"logit_bias": {"1": 5}}):
        post(served, COMPLETIONS, {"prompt": secret, "max_tokens": 1, **more})
        post(served, CHAT, {"messages": [{"role": "user", "content": secret}], "max_tokens": 1, **more})
    assert secret not in served.output.read_text()
    assert secret not in served.engine_log.read_text()
