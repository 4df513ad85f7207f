"""Asks an OpenAI-compatible server and notes what was said, how fast, and how much of it the draft proposed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import aiohttp

from drafts.prompts import Prompt
from server.acceptance import AcceptanceRecord, read_acceptance
from stages.errors import EngineError

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: temperature 0 is greedy; the seed of request i is ``seed + i``.

    Attributes:
        stream: get answers token by token, as clients do; in one piece they cost the server less but have no TTFT.
        ignore_eos: go on to ``max_tokens`` (a field of vLLM's), so that models that say different things say as much.
    """

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    stream: bool = True
    ignore_eos: bool = False


@dataclass(frozen=True)
class Answer:
    """One answered prompt. Times are seconds since the request was sent."""

    prompt_id: str
    kind: str
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    e2e_s: float
    speculation: AcceptanceRecord | None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of one token."""
        if self.completion_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.completion_tokens - 1)


def _piece(choice: dict[str, Any]) -> str:
    """The text a choice adds."""
    said = choice.get("delta") or choice.get("message") or {}
    return choice.get("text") or said.get("content") or ""


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """The events of an answer, None for the one that ends it; an answer in one piece is one event."""
    if response.content_type == "application/json":
        yield json.loads(await response.read())
        yield None
        return
    async for line in response.content:
        if line.startswith(b"data: "):
            yield None if line.strip() == b"data: [DONE]" else json.loads(line[6:])


async def ask(
    session: aiohttp.ClientSession, base_url: str, model: str, prompt: Prompt, sampling: Sampling, seed: int
) -> Answer:
    """Gets one answer, streamed or in one piece (then TTFT is the time to its end).

    Raises:
        EngineError: when the server answers with an error or breaks off; the message carries the server's own.
    """
    route, content = prompt.request()
    body = {
        "model": model, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": seed, **content,
    }  # fmt: skip
    if sampling.ignore_eos:
        body["ignore_eos"] = True
    if sampling.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    started = time.perf_counter()
    text, finish, first, last = "", None, None, started
    usage: dict[str, Any] = {}
    speculation, whole = None, False
    async with session.post(base_url + route, json=body) as response:
        if response.status != 200:
            said = (await response.text())[:300]
            raise EngineError(f"{base_url}{route} answered {response.status} to prompt {prompt.id}: {said}")
        async for event in _events(response):
            if event is None:
                whole = True
                continue
            if "error" in event:
                raise EngineError(f"{base_url}{route} broke off: {str(event['error'])[:300]}")
            for choice in event.get("choices", ()):
                last = time.perf_counter()
                first = first or last
                text += _piece(choice)
                finish = choice.get("finish_reason") or finish
            if event.get("usage"):
                usage = event["usage"]
            record = read_acceptance(event)
            speculation = record if isinstance(record, AcceptanceRecord) else speculation
    if not whole:
        raise EngineError(f"{base_url}{route} broke off in the middle of its answer to prompt {prompt.id}")
    return Answer(
        prompt_id=prompt.id, kind=prompt.kind, text=text, finish_reason=finish,
        prompt_tokens=int(usage.get("prompt_tokens", 0)), completion_tokens=int(usage.get("completion_tokens", 0)),
        ttft_s=(first or last) - started, e2e_s=last - started, speculation=speculation,
    )  # fmt: skip


def first_of(errors: BaseExceptionGroup[BaseException], base_url: str) -> BaseException:
    """One error for all that workers raised: an interruption or one of ours as it is, the rest as the engine's."""
    first = errors.exceptions[0]
    if isinstance(first, aiohttp.ClientError | TimeoutError | ValueError):
        return EngineError(f"{base_url}: {str(first) or type(first).__name__}")
    return first


def poisson(rate: float, count: int, seed: int) -> list[float]:
    """Seconds after the start at which ``count`` requests arrive, ``rate`` of them a second on average."""
    draw = random.Random(seed)
    return list(accumulate(draw.expovariate(rate) for _ in range(count)))


async def ask_all(
    base_url: str,
    model: str,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    concurrency: int,
    on_answer: Callable[[int, Answer], None] = lambda index, answer: None,
    seeds: Sequence[int] | None = None,
    rate: float | None = None,
) -> tuple[list[Answer], float]:
    """Asks all prompts: in a closed loop of ``concurrency`` workers, or as they arrive by a Poisson process.

    Args:
        concurrency: requests under way at most.
        rate: arrivals per second, drawn from ``sampling.seed``; None is the closed loop. A request that must wait for
            its turn has waited since its arrival.
        on_answer: called with the prompt's place and its answer, as answers come.
        seeds: one for each prompt; ``sampling.seed`` + place when not given.

    Returns:
        (answers in the prompts' order, wall time in seconds).

    Raises:
        EngineError: the server could not be reached, refused a request, or broke off; or what ``on_answer`` raised.
    """
    answers: list[Answer | None] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)

    arrivals = [0.0] * len(prompts) if rate is None else poisson(rate, len(prompts), sampling.seed)

    async def worker(session: aiohttp.ClientSession) -> None:
        for index, prompt in waiting:
            seed = sampling.seed + index if seeds is None else seeds[index]
            await asyncio.sleep(started + arrivals[index] - time.perf_counter())
            late = max(0.0, time.perf_counter() - started - arrivals[index]) if rate else 0.0
            answer = await ask(session, base_url, model, prompt, sampling, seed)
            answers[index] = answer = replace(answer, ttft_s=answer.ttft_s + late, e2e_s=answer.e2e_s + late)
            on_answer(index, answer)

    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            started = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for _ in range(min(concurrency, len(prompts))):
                    group.create_task(worker(session))
            wall = time.perf_counter() - started
    except BaseExceptionGroup as errors:
        raise first_of(errors, base_url) from errors
    return [answer for answer in answers if answer is not None], wall
