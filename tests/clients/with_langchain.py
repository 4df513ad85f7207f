"""LangChain's client of OpenAI against a gateway: address and key come from the environment, as for any of its users."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

QUESTION = "Which city is Norway's capital?"


class City(BaseModel):
    """A city."""

    city: Literal["Oslo", "Paris"]
    capital: bool


@tool
def weather(city: Literal["Oslo", "Paris"]) -> str:
    """The weather in a city."""
    return f"cold in {city}"


def make(max_tokens: int = 7) -> ChatOpenAI:
    """The client under test."""
    return ChatOpenAI(model="reference", temperature=0, max_tokens=max_tokens)


def check_invoke() -> None:
    answer = make().invoke(QUESTION)
    assert answer.content
    assert answer.usage_metadata
    assert 0 < answer.usage_metadata["output_tokens"] <= 7


def check_stream() -> None:
    chunks = list(make().stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == make().invoke(QUESTION).content
    told = [chunk.usage_metadata for chunk in make().stream(QUESTION, stream_usage=True) if chunk.usage_metadata]
    assert 0 < sum(usage["output_tokens"] for usage in told) <= 7


def check_async() -> None:
    async def ask() -> list[str]:
        model = make()
        whole = await model.ainvoke(QUESTION)
        pieces = [str(chunk.content) async for chunk in model.astream(QUESTION)]
        return [str(whole.content), "".join(pieces)]

    assert len(set(asyncio.run(ask()))) == 1


def check_batch() -> None:
    assert len({answer.content for answer in make().batch([QUESTION] * 4)}) == 1


def check_tools() -> None:
    for choice in ("weather", "any"):
        (call,) = make(64).bind_tools([weather], tool_choice=choice).invoke(QUESTION).tool_calls
        assert call["name"] == "weather"
        assert str(weather.invoke(call["args"])).startswith("cold in ")


def check_tools_in_a_stream() -> None:
    bound = make(64).bind_tools([weather], tool_choice="weather")
    whole = None
    for chunk in bound.stream(QUESTION):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.tool_calls[0]["args"]["city"] in ("Oslo", "Paris")


def check_structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        found = (
            make(64)
            .with_structured_output(City if method == "json_schema" else weather, method=method)
            .invoke(QUESTION)
        )
        city = found.city if isinstance(found, City) else found["city"]
        assert city in ("Oslo", "Paris")


def main() -> None:
    """Runs every check."""
    print("langchain-openai", version("langchain-openai"), "openai", version("openai"))
    for name, check in globals().copy().items():
        if name.startswith("check_"):
            check()
            print("ok", name.removeprefix("check_"))


if __name__ == "__main__":
    main()
