"""LiteLLM as a client against a gateway: address and key come from the environment, as for any of its users."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version
from typing import Any

import litellm

ASKED: dict[str, Any] = {
    "model": "openai/reference", "messages": [{"role": "user", "content": "Which city is Norway's capital?"}],
    "max_tokens": 7, "temperature": 0,
}  # fmt: skip
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_completion() -> None:
    answer = litellm.completion(**ASKED)
    assert answer.choices[0].message.content
    assert 0 < answer.usage.completion_tokens <= 7
    assert answer.usage.prompt_tokens > 0


def check_streaming() -> None:
    said = litellm.completion(**ASKED).choices[0].message.content
    assert text_of(list(litellm.completion(**ASKED, stream=True))) == said
    counted = list(litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True}))
    assert text_of(counted) == said
    assert 0 < counted[-1].usage.completion_tokens <= 7


def check_async() -> None:
    async def ask() -> list[str]:
        whole = await litellm.acompletion(**ASKED)
        stream = await litellm.acompletion(**ASKED, stream=True)
        return [whole.choices[0].message.content, text_of([chunk async for chunk in stream])]

    assert len(set(asyncio.run(ask()))) == 1


def check_text_completion() -> None:
    answer = litellm.text_completion(model="text-completion-openai/reference", prompt="import os", max_tokens=3)
    assert answer.choices[0].text


def check_tools() -> None:
    asked = {**ASKED, "max_tokens": 64, "tools": [TOOL], "tool_choice": "required"}
    (call,) = litellm.completion(**asked).choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Paris")


def check_errors() -> None:
    for changed, kind in (
        ({"model": "openai/nobody"}, litellm.NotFoundError),
        ({"n": 0}, litellm.BadRequestError),
        ({"api_key": "sk-nobody"}, litellm.AuthenticationError),
    ):
        try:
            litellm.completion(**{**ASKED, **changed}, max_retries=0)
        except kind:
            continue
        raise AssertionError(f"no {kind.__name__}")


def main() -> None:
    """Runs every check."""
    print("litellm", version("litellm"), "openai", version("openai"))
    for name, check in globals().copy().items():
        if name.startswith("check_"):
            check()
            print("ok", name.removeprefix("check_"))


if __name__ == "__main__":
    main()
