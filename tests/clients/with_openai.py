"""OpenAI's own client against a gateway: ``OPENAI_BASE_URL`` and the keys come from the environment, as for any of its users."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import urllib.request
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "reference"
ASKED: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Which city is Norway's capital?"}]}
SHORT = {**ASKED, "max_tokens": 7, "temperature": 0}
LONG = {**ASKED, "max_tokens": 500, "stream": True, "extra_body": {"ignore_eos": True}}
"""Goes on for long enough that something else can be asked meanwhile; is left in the middle."""
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Paris"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


class City(BaseModel):
    """What structured output is read into."""

    city: Literal["Oslo", "Paris"]
    capital: bool


def status_429(tenant: str) -> float:
    """How many requests of a tenant the gateway has refused with 429."""
    address = os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/metrics"
    text = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).read().decode()
    rows = [row for row in text.splitlines() if row.startswith("understudy_requests_total{")]
    return sum(float(row.rpartition(" ")[2]) for row in rows if f'"{tenant}"' in row and '"429"' in row)


def text_of(chunks: list[Any]) -> str:
    """What a stream said."""
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def check_models(client: OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]


def check_sync(client: OpenAI) -> None:
    answer = client.chat.completions.create(**SHORT)
    assert answer.choices[0].message.content
    assert answer.usage
    assert 0 < answer.usage.completion_tokens <= 7
    assert client.completions.create(model=MODEL, prompt="import os", max_tokens=3).choices[0].text


def check_streaming(client: OpenAI) -> None:
    answer = client.chat.completions.create(**SHORT).choices[0].message.content
    plain = list(client.chat.completions.create(**SHORT, stream=True))
    assert text_of(plain) == answer
    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    counted = list(client.chat.completions.create(**SHORT, stream=True, stream_options={"include_usage": True}))
    assert text_of(counted) == answer
    assert counted[-1].usage
    assert 0 < counted[-1].usage.completion_tokens <= 7


def check_acceptance_as_openai_names_it(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**SHORT)
    usage = raw.parse().usage
    if raw.headers["x-understudy-draft"] == "none":
        return
    assert usage
    assert usage.completion_tokens_details
    assert usage.completion_tokens_details.accepted_prediction_tokens is not None
    assert usage.completion_tokens_details.rejected_prediction_tokens is not None
    assert raw.headers["x-request-id"]


def check_async(client: OpenAI) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI() as another:
            whole = await another.chat.completions.create(**SHORT)
            streams = [await another.chat.completions.create(**SHORT, stream=True) for _ in range(3)]
            said = [text_of([chunk async for chunk in stream]) for stream in streams]
            return [whole.choices[0].message.content or "", *said]

    (said,) = set(asyncio.run(ask()))
    assert said


def arguments_of(answer: Any) -> dict[str, Any]:
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    found: dict[str, Any] = json.loads(call.function.arguments)
    return found


def check_tools(client: OpenAI) -> None:
    asked = {**ASKED, "tools": [TOOL], "max_tokens": 64, "temperature": 0}
    assert arguments_of(client.chat.completions.create(**asked, tool_choice=NAMED))["city"] in ("Oslo", "Paris")
    required = client.chat.completions.create(**asked, tool_choice="required")
    assert arguments_of(required)["city"] in ("Oslo", "Paris")
    assert required.choices[0].finish_reason == "tool_calls"


def check_tools_in_a_stream(client: OpenAI) -> None:
    asked = {**ASKED, "tools": [TOOL], "max_tokens": 64, "temperature": 0, "tool_choice": NAMED, "stream": True}
    calls = [
        call
        for chunk in client.chat.completions.create(**asked)
        for call in chunk.choices[0].delta.tool_calls or []
    ]  # fmt: skip
    assert calls[0].function.name == "weather"
    assert json.loads("".join(call.function.arguments or "" for call in calls))["city"] in ("Oslo", "Paris")


def check_json_schema(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(**{**SHORT, "max_tokens": 64}, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    with client.chat.completions.stream(**{**SHORT, "max_tokens": 64}, response_format=City) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, City)


def raised(kind: type[openai.APIStatusError], client: OpenAI, **asked: Any) -> openai.APIStatusError:
    try:
        client.chat.completions.create(**asked)
    except kind as error:
        found = error
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert isinstance(found.body, dict)
    assert set(found.body) == {"message", "type", "param", "code"}, found.body
    return found


def check_errors(client: OpenAI) -> None:
    assert raised(openai.BadRequestError, client, **{**ASKED, "n": 0}).param == "n"
    assert raised(openai.BadRequestError, client, **{**ASKED, "messages": "x"}).status_code == 400
    assert raised(openai.NotFoundError, client, **{**ASKED, "model": "nobody"}).param == "model"
    unknown = raised(openai.AuthenticationError, client.with_options(api_key="sk-nobody"), **ASKED)
    assert unknown.code == "invalid_api_key"
    narrow = client.with_options(api_key=os.environ["NARROW_KEY"])
    assert raised(openai.PermissionDeniedError, narrow, **{**ASKED, "model": "nobody"}).code == "model_not_allowed"


def check_a_429_is_tried_again_after_the_time_told(client: OpenAI) -> None:
    narrow = client.with_options(api_key=os.environ["NARROW_KEY"])
    stream = narrow.chat.completions.create(**LONG)
    next(iter(stream))
    refused = raised(openai.RateLimitError, narrow.with_options(max_retries=0), **SHORT)
    assert refused.code == "too_many_requests"
    assert refused.response.headers["retry-after"] == "1"
    assert refused.response.headers["x-ratelimit-limit-requests"]
    threading.Timer(0.2, stream.close).start()
    answer = narrow.with_options(max_retries=3).chat.completions.with_raw_response.create(**SHORT)
    assert answer.retries_taken > 0
    assert answer.parse().choices


def check_a_503_is_tried_again_after_the_time_told(client: OpenAI) -> None:
    streams = [client.chat.completions.create(**LONG) for _ in range(int(os.environ["MAX_IN_FLIGHT"]))]
    for stream in streams:
        next(iter(stream))
    refused = raised(openai.InternalServerError, client.with_options(max_retries=0), **SHORT)
    assert (refused.status_code, refused.code) == (503, "overloaded")
    assert int(refused.response.headers["retry-after"]) >= 1
    threading.Timer(0.2, lambda: [stream.close() for stream in streams]).start()
    answer = client.with_options(max_retries=3).chat.completions.with_raw_response.create(**SHORT)
    assert answer.retries_taken > 0
    assert answer.parse().choices


def check_what_is_hopeless_is_not_tried_again(client: OpenAI) -> None:
    tiny = client.with_options(api_key=os.environ["TINY_KEY"], max_retries=5)
    before = status_429("tiny")
    refused = raised(openai.RateLimitError, tiny, **{**SHORT, "max_tokens": 400})
    assert refused.code == "request_too_large"
    assert refused.response.headers["x-should-retry"] == "false"
    assert status_429("tiny") == before + 1


def main() -> None:
    """Runs every check with a client of its own."""
    print("openai", openai.__version__)
    for name, check in globals().copy().items():
        if name.startswith("check_"):
            with OpenAI() as client:
                check(client)
            print("ok", name.removeprefix("check_"))


if __name__ == "__main__":
    main()
