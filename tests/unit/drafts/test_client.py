"""The client against a small server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from drafts.client import Sampling, ask_all, poisson
from drafts.prompts import Prompt
from stages.errors import EngineError, StorageError

PROMPTS = [Prompt(prompt=f"p{i}") for i in range(6)]
CHUNK = b'data: {"choices": [{"text": "a"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"


@asynccontextmanager
async def answering(body: bytes, status: int = 200, delay_s: float = 0.0) -> AsyncIterator[tuple[str, list[int]]]:
    seeds: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        seeds.append((await request.json())["seed"])
        await asyncio.sleep(delay_s)
        kind = "text/event-stream" if (await request.json()).get("stream") else "application/json"
        return web.Response(body=body, status=status, content_type=kind)

    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", seeds
    finally:
        await runner.cleanup()


def ask(body: bytes, status: int = 200, stream: bool = True, **options: object) -> tuple[list[str], list[int]]:
    async def run() -> tuple[list[str], list[int]]:
        async with answering(body, status) as (url, seeds):
            sampling = Sampling(4, seed=10, stream=stream)
            answers, _ = await ask_all(url, "m", PROMPTS, sampling, 3, **options)  # type: ignore[arg-type]
            return [answer.text for answer in answers], seeds

    return asyncio.run(run())


def test_seeds_follow_the_place_or_are_given() -> None:
    assert sorted(ask(CHUNK + DONE)[1]) == [10, 11, 12, 13, 14, 15]
    assert sorted(ask(CHUNK + DONE, seeds=[3, 1, 4, 1, 5, 9])[1]) == [1, 1, 3, 4, 5, 9]


def test_answers_go_on_to_their_limit_where_that_is_asked_for() -> None:
    asked: list[object] = []

    async def run(sampling: Sampling) -> None:
        async def answer(request: web.Request) -> web.Response:
            asked.append((await request.json()).get("ignore_eos"))
            return web.Response(body=CHUNK + DONE, content_type="text/event-stream")

        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        async with TestServer(app) as server:
            await ask_all(str(server.make_url("")).rstrip("/"), "m", PROMPTS[:1], sampling, 1)

    asyncio.run(run(Sampling(4)))
    asyncio.run(run(Sampling(4, ignore_eos=True)))
    assert asked == [None, True]


def test_answers_in_one_piece() -> None:
    assert ask(b'{"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}', stream=False)[0] == ["a"] * 6
    assert ask(b'{"choices": [{"message": {"content": "b"}}]}', stream=False)[0] == ["b"] * 6


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (CHUNK, 200, "broke off in the middle of its answer to prompt"),
        (b"data: {half\n\n" + DONE, 200, "Expecting"),
        (b'data: {"error": {"message": "lost"}}\n\n' + DONE, 200, "lost"),
        (b"too long", 400, "answered 400 to prompt [0-9a-f]{16}: too long"),
    ],
)
def test_whatever_goes_wrong_is_one_error_of_the_engine(body: bytes, status: int, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        ask(body, status)


def test_nobody_listening_is_an_error_of_the_engine() -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1"):
        asyncio.run(ask_all("http://127.0.0.1:9", "m", PROMPTS, Sampling(4), 3))


def test_an_error_of_ours_passes_as_it_is() -> None:
    def full(index: int, answer: object) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        ask(CHUNK + DONE, on_answer=full)


def test_an_unreadable_record_is_no_record() -> None:
    record = b'data: {"choices": [], "metrics": {"speculative_decoding": {"num_drafts": 1}}}\n\n'
    assert ask(CHUNK + record + DONE)[0] == ["a"] * 6


def test_arrivals_are_random_but_the_same_for_every_method() -> None:
    assert poisson(50.0, 2000, 1) == poisson(50.0, 2000, 1) != poisson(50.0, 2000, 2)
    assert poisson(50.0, 2000, 1)[-1] == pytest.approx(40.0, rel=0.1)
    assert sorted(poisson(5.0, 20, 1)) == poisson(5.0, 20, 1)


def test_an_open_loop_asks_everything_and_counts_waiting_from_the_arrival() -> None:
    async def run() -> list[float]:
        async with answering(CHUNK + DONE, delay_s=0.02) as (url, seeds):
            answers, _ = await ask_all(url, "m", PROMPTS, Sampling(4, seed=10), 1, rate=1e6)
            assert sorted(seeds) == [10, 11, 12, 13, 14, 15]
            return [answer.e2e_s for answer in answers]

    waited = asyncio.run(run())
    assert len(waited) == 6
    assert waited[-1] > 5 * 0.02  # all came at once, one is served at a time: the last has waited for five others
