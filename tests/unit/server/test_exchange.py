from __future__ import annotations

import asyncio

import pytest

from server.acceptance import AcceptanceRecord, Missing, Usage
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    async def passes(self, seconds: float) -> None:
        self.now += seconds


def finished_stream(clock: Clock, output_tokens: int, sequences: int = 1) -> Exchange:
    exchange = Exchange(clock)
    clock.now += 1
    exchange.admitted_s = clock()
    asyncio.run(exchange.wait(clock.passes(2)))
    assert exchange.see_chunk() is None
    asyncio.run(exchange.wait(clock.passes(4)))
    assert exchange.see_chunk() == 4
    clock.now += 0.5
    exchange.settle("200")
    exchange.usage, exchange.num_sequences = Usage(3, output_tokens), sequences
    return exchange


def test_times_of_a_stream() -> None:
    exchange = finished_stream(Clock(), output_tokens=10)
    assert (exchange.ttft_s, exchange.e2e_s) == (3.0, 7.5)
    assert exchange.tpot_s == (7.5 - 3.0) / 9
    assert exchange.overhead_s == 0.5


def test_the_first_word_on_how_it_ended_counts() -> None:
    clock = Clock()
    exchange = Exchange(clock)
    clock.now += 2
    exchange.settle("200")
    clock.now += 2
    exchange.settle(CLIENT_GONE)
    assert (exchange.status, exchange.e2e_s) == ("200", 2.0)


@pytest.mark.parametrize(("output_tokens", "sequences"), [(0, 1), (1, 1), (10, 2)])
def test_time_per_token_is_undefined_where_tokens_do_not_follow_one_another(output_tokens: int, sequences: int) -> None:
    assert finished_stream(Clock(), output_tokens, sequences).tpot_s is None


def test_answers_in_one_piece_have_no_first_chunk() -> None:
    exchange = Exchange(Clock())
    exchange.settle("200")
    assert (exchange.ttft_s, exchange.tpot_s, exchange.e2e_s) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("due", "status", "acceptance", "missing"),
    [
        (False, "400", Missing.ABSENT, None),
        (True, "400", Missing.ABSENT, None),
        (True, "200", Missing.ABSENT, Missing.ABSENT),
        (True, "200", Missing.MALFORMED, Missing.MALFORMED),
        (True, CLIENT_GONE, Missing.ABSENT, Missing.CANCELLED),
        (False, CLIENT_GONE, Missing.ABSENT, None),
        (True, STREAM_FAILED, Missing.ABSENT, Missing.FAILED),
        (True, CLIENT_GONE, AcceptanceRecord(1, 1, 1), None),
    ],
)
def test_why_a_record_is_missing(
    due: bool, status: str, acceptance: AcceptanceRecord | Missing, missing: Missing | None
) -> None:
    exchange = Exchange(record_due=due, status=status, acceptance=acceptance)
    assert exchange.missing is missing
