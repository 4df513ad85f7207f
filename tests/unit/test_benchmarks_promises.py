"""The gateway's promises as a benchmark: its stand-in and client over real sockets, and how tries become kept or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gateway_promises import NAMES, options
from benchmarks.promises import budget, ending, overload, soak, table
from benchmarks.promises.client import Answer, Request, ask, connected, hang_up
from benchmarks.promises.plan import QUICK
from benchmarks.promises.rows import Row, counted, merged, timed, write
from benchmarks.promises.upstream import Engine, Script
from benchmarks.render import gateway


def with_engine(do: Callable[[Engine, int], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with Engine().running() as engine:
            return await do(engine, int(engine.url.rpartition(":")[2]))

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_answered_as_its_script_says_and_a_missing_token_is_noticed(stream: bool) -> None:
    request = Request(Script(1, chunks=5, gap_s=0.001, wait_s=0.001), stream)

    async def both(engine: Engine, port: int) -> tuple[Answer, float | None]:
        return await ask(port, request.data()), engine.of(1).ended_s

    answer, ended_s = with_engine(both)
    assert answer.fulfils(request)
    assert ended_s is not None
    assert 0 < answer.ttfb_s <= answer.e2e_s
    assert not answer.fulfils(Request(Script(1, chunks=6), stream))
    assert not Answer(0.0, answer.data[:-3]).fulfils(request)


@pytest.mark.parametrize("hard", [True, False])
def test_who_leaves_is_seen_to_leave_and_only_what_was_written_is_counted(hard: bool) -> None:
    request = Request(Script(7, chunks=1000, gap_s=0.001))

    async def leave(engine: Engine, port: int) -> None:
        seen = engine.of(7)
        async with connected(port) as (reader, writer):
            writer.write(request.data())
            await reader.readuntil(b"data: {")
            hang_up(writer, hard)
            await seen.over.wait()
        assert seen.closed_s is not None
        assert seen.ended_s is None
        assert seen.tokens < 1000

    with_engine(leave)


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_fault_is_no_answer(fault: str) -> None:
    request = Request(Script(1, chunks=20, gap_s=0.001, fault=fault))
    answer = with_engine(lambda _, port: ask(port, request.data()))
    assert not answer.fulfils(request)
    assert not answer.refused
    assert answer.complete == (fault == "500")


def test_nobody_listening_is_told_apart_from_an_answer_that_breaks_off() -> None:
    async def port_of_nobody() -> Answer:
        async with Engine().running() as engine:
            port = int(engine.url.rpartition(":")[2])
        return await ask(port, b"")

    answer = asyncio.run(port_of_nobody())
    assert answer.refused_connection
    assert answer.status == 0


def answered(status: int, sent_s: float = 0.0, e2e_s: float = 0.0, ttfb_s: float = 0.0, more: str = "") -> Answer:
    head = f"HTTP/1.1 {status} X\r\ncontent-length: 2\r\n{more}\r\n"
    return Answer(sent_s, head.encode() + b"{}", ttfb_s, e2e_s)


def test_a_refusal_says_when_to_come_back() -> None:
    assert answered(503, more="Retry-After: 1\r\n").refused
    assert not answered(503).refused
    assert not answered(500, more="Retry-After: 1\r\n").refused


def test_one_late_try_breaks_a_promise_of_time_and_none_is_not_kept() -> None:
    assert timed("x", "", [0.01, 0.09], 0.1).is_kept
    late = timed("x", "", [0.01, 0.11], 0.1)
    assert (late.kept, late.tried, late.worst, late.unit, late.is_kept) == (1, 2, 110.0, "ms", False)
    assert not timed("x", "", [], 0.1).is_kept
    assert not counted("x", "", []).is_kept
    assert (counted("x", "", [True, False]).worst, counted("x", "", [True, False]).is_kept) == (1, False)


def test_a_partial_run_replaces_its_own_rows_only_and_leaves_the_overhead(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"overhead": [1]}))
    order = ("first", "second")
    write(file, [counted("second", "a", [True]), counted("second", "b", [True])], order)
    write(file, [counted("first", "c", [True])], order)
    write(file, [counted("second", "d", [False])], order)
    record = json.loads(file.read_text())
    assert record["overhead"] == [1]
    assert [row["promise"] for row in record["promises"]] == ["c", "d"]
    assert merged([], [], order) == []


def test_a_promise_that_was_not_kept_is_shown_as_such() -> None:
    run = {"hardware": {"cpu": "c", "cores": 2, "python": "3"}, "revision": "r", "date": "d"}
    rows = [
        Row("x", "kept one", 200, 200, 3.5, "ms", 100, True, {**run, "settings": {"max_in_flight": 4}}),
        Row("x", "broken one", 200, 199, 1, "lost", 0, False, {**run, "wrong": ["500"]}),
    ]
    text = gateway({"promises": [row.__dict__ for row in rows]})
    assert "| kept one | 200 | 200 | 3.5 ms | 100 ms | kept |" in text
    assert "| broken one | 200 | 199 | 1 lost | 0 lost | **not kept** |" in text
    assert "gateway: `max_in_flight=4`" in text
    assert text.count("revision r") == 1
    assert table.figure(None, "s") == "–"


def test_the_ledger_knows_the_most_that_a_tenant_had_at_once() -> None:
    ledger = budget.Ledger()
    for tokens in (50, 40):
        ledger.arrive(tokens)
    ledger.end(50, 10)
    ledger.arrive(60)
    assert (ledger.most, ledger.running, ledger.taken, ledger.largest) == (110, 100, 10, 60)


@pytest.mark.parametrize(
    ("most", "refused", "tried", "kept"), [(3000, 3, 1, 1), (3099, 3, 1, 1), (3200, 3, 1, 0), (100, 0, 0, 0)]
)
def test_a_round_keeps_the_budget_up_to_one_declaration_and_counts_only_if_somebody_was_refused(
    most: int, refused: int, tried: int, kept: int
) -> None:
    row = budget._row([budget.Ledger(most=most, largest=100, refused=refused)])
    assert (row.tried, row.kept, row.is_kept) == (tried, kept, bool(kept))


def overloaded(ttfb_s: float, sent_s: float = 0.0) -> overload.Try:
    request = Request(Script(1, chunks=2))
    events = b'data: {"id":1}\n\n' * 2 + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(events)
    return overload.Try(request, Answer(sent_s, head + events, ttfb_s, 1.0))


def turned_away(e2e_s: float, sent_s: float = 0.0) -> overload.Try:
    return overload.Try(Request(Script(1)), answered(503, sent_s, e2e_s, more="retry-after: 1\r\n"))


def test_overload_is_judged_by_the_p99_of_who_was_let_in_and_by_every_refusal() -> None:
    during = [overloaded(0.2)] * 199 + [overloaded(0.9)] + [turned_away(0.01), turned_away(0.06)]
    phases = overload.Phases([overloaded(0.2)] * 10, during, [overloaded(0.2, 7.0), turned_away(0.01, 2.0)], 0.0, 0.3)
    whole, refusals, first_byte, after = overload.rows(phases, QUICK)
    assert (whole.is_kept, whole.tried) == (True, 202)
    assert (refusals.is_kept, refusals.kept, refusals.tried, refusals.worst) == (False, 1, 2, 60.0)
    assert (first_byte.is_kept, first_byte.kept, first_byte.tried, first_byte.worst) == (True, 199, 200, 1.0)
    assert (after.is_kept, after.tried, after.worst) == (True, 1, 2.0)
    late = overload.Phases(phases.before, during, [overloaded(0.5, 7.0)], 0.0, 0.3)
    assert not overload.rows(late, QUICK)[3].is_kept


def ended(sent_s: float, answer: Answer) -> ending.Found:
    found = ending.Found()
    answer.sent_s = sent_s
    ending._judge(ending.Asked(Request(Script(1, chunks=2)), answer), 10.0, found)
    return found


def test_only_what_was_sent_before_the_signal_counts_as_accepted_and_only_the_last_instant_may_be_refused() -> None:
    refusal = answered(503, e2e_s=0.2, more="retry-after: 1\r\n")
    assert ended(9.5, Answer(0.0, overloaded(0.1).answer.data, 0.1, 1.0)).accepted == [True]
    assert ended(9.5, Answer(0.0, b"", e2e_s=1.0)).accepted == [False]
    assert ended(9.85, refusal).accepted == [False]
    assert (ended(9.95, refusal).refused, ended(10.5, refusal).refused) == (1, 1)
    assert ended(10.5, Answer(0.0, b"", e2e_s=1.0)).unanswered == 1
    assert ended(10.5, Answer(0.0, b"HTTP/1.1 200 OK\r\n\r\nda", e2e_s=1.0)).lost


def resident(growth: float) -> list[soak.Sample]:
    return [soak.Sample(float(second), int(1e8 * (1 + growth * max(0, second - 20))), 20) for second in range(40)]


def test_memory_is_measured_against_the_time_after_the_warm_up() -> None:
    assert soak.memory("", resident(0.0), 10.0).is_kept
    leak = soak.memory("", resident(0.004), 10.0)
    assert not leak.is_kept
    assert 0 < leak.kept < leak.tried == 20


@pytest.mark.parametrize(
    ("most", "after", "left", "kept"),
    [(20, 9, 0, True), (20, 15, 0, True), (20, 16, 0, False), (20, 9, 1, False), (99, 9, 0, False)],
)
def test_descriptors_and_requests_must_be_gone_at_rest(most: int, after: int, left: int, kept: bool) -> None:
    samples = [soak.Sample(0.0, 1, most)]
    assert soak.descriptors("", soak.Sample(0.0, 1, 9), samples, soak.Sample(0.0, 1, after), left).is_kept == kept


def test_the_command_line_knows_every_promise() -> None:
    assert options(["--only", NAMES[0]]).only == [NAMES[0]]
    assert tuple(options([]).only) == NAMES
    with pytest.raises(SystemExit):
        options(["--only", "nothing"])
