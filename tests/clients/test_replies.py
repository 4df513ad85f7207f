"""The replies are what vLLM's own classes write, key by key in order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients import replies

ASKED: dict[str, Any] = {"messages": [], "stream_options": {"include_usage": True}}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
REQUESTS = [
    ASKED, {**ASKED, "max_tokens": 3}, {**ASKED, "tools": TOOLS, "tool_choice": "required"},
    {**ASKED, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {**ASKED, "response_format": {"type": "json_schema"}},
]  # fmt: skip


def test_whole_answers() -> None:
    chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    for request in REQUESTS:
        answer = replies.chat(request)
        assert replies.dump(chat.ChatCompletionResponse.model_validate(answer).model_dump()) == replies.dump(answer)
    answer = replies.completion({"max_tokens": 3})
    assert replies.dump(completion.CompletionResponse.model_validate(answer).model_dump()) == replies.dump(answer)


def test_streams() -> None:
    chat = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    completion = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    for request in REQUESTS:
        for chunk in replies.chat_stream(request):
            made = chat.ChatCompletionStreamResponse.model_validate(chunk)
            assert made.model_dump_json(exclude_unset=True).encode() == replies.dump(chunk)
    for chunk in replies.completion_stream(ASKED):
        made = completion.CompletionStreamResponse.model_validate(chunk)
        assert made.model_dump_json(exclude_unset=True).encode() == replies.dump(chunk)


def test_models_and_errors() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.serve.engine.protocol")
    for kind, answer in ((protocol.ModelList, replies.models()), (protocol.ErrorResponse, replies.no_such_model("x"))):
        assert replies.dump(kind.model_validate(answer).model_dump()) == replies.dump(answer)
