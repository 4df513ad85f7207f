"""The benchmark of the gateway: its client and streamer over real sockets, and what becomes of the figures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gateway import Plan, add_differences, cpu_s, memory_bytes, percentile, row, tree
from benchmarks.gateway_load import Load, Result, dechunked, run
from benchmarks.gateway_streamer import Plan as Answers
from benchmarks.gateway_streamer import Streamer
from benchmarks.render import against, gateway, in_short


def ask(stream: bool, **fields: Any) -> Result:
    async def both() -> Result:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Streamer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await run(Load(port, stream, **{"connections": 3, "requests": 7, **fields}))

    return asyncio.run(both())


@pytest.mark.parametrize("gap_s", [0.0, 0.0001])
def test_every_request_is_answered_and_every_chunk_counted(monkeypatch: pytest.MonkeyPatch, gap_s: float) -> None:
    monkeypatch.setattr(Streamer, "plan", Answers(chunks=10, gap_s=gap_s))
    result = ask(stream=True)
    assert (result.errors, len(result.ttfb_s), result.events) == ([], 7, 70)
    assert all(first <= end for first, end in zip(result.ttfb_s, result.e2e_s, strict=True))
    result = ask(stream=False)
    assert (result.errors, len(result.ttfb_s), result.events) == ([], 7, 0)


def test_requests_are_sent_when_they_are_due_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Streamer, "plan", Answers())
    result = ask(stream=False, requests=5, rate=50.0)
    assert (result.errors, len(result.ttfb_s)) == ([], 5)
    assert result.wall_s >= 4 / 50


def test_what_is_refused_is_an_error_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Load, "request", lambda self: b"GET /nowhere HTTP/1.1\r\n\r\n")
    result = ask(stream=False, requests=1, connections=1)
    assert result.ttfb_s == []
    assert "404" in result.errors[0]


def test_chunks_are_joined() -> None:
    assert dechunked(b"3\r\nabc\r\n2;x=1\r\nde\r\n0\r\n\r\n") == b"abcde"


def test_cpu_and_memory_are_those_of_the_whole_tree() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import sys; sum(range(3_000_000)); sys.stdin.read()'])"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    assert child.stdin is not None
    try:
        while len(tree(child.pid)) < 2 or cpu_s(child.pid) < 0.02:
            assert child.poll() is None
        assert memory_bytes(child.pid) > 2**20
        assert child.pid in tree(os.getpid())
    finally:
        child.stdin.close()
        child.wait()


def cell(ttfb_s: float, cpu: float | None) -> dict[str, Any]:
    return {
        "errors": [], "answered": 10, "requests": 10, "events": 0, "ttfb_p50_s": ttfb_s, "ttfb_p99_s": 2 * ttfb_s,
        "cpu_s_per_request": cpu, "cpu_s_per_1000_chunks": None,
    }  # fmt: skip


def test_what_a_proxy_adds_is_against_the_direct_way_of_the_same_round() -> None:
    cells = {"direct": cell(0.001, None), "nginx": cell(0.0015, 0.0002)}
    add_differences(cells)
    assert cells["nginx"]["added_ttfb_p50_s"] == pytest.approx(0.0005)
    assert cells["nginx"]["added_ttfb_p99_s"] == pytest.approx(0.001)
    assert cells["direct"]["added_ttfb_p50_s"] == 0


def test_rows_hold_the_median_and_the_range_and_the_section_shows_them() -> None:
    rounds = []
    for direct, mine in ((0.001, 0.002), (0.001, 0.004), (0.001, 0.003)):
        cells = {"direct": cell(direct, None), "nginx": cell(mine, mine / 10)}
        add_differences(cells)
        rounds.append(cells)
    rows = [row(name, "whole", 8, [cells[name] for cells in rounds]) for name in ("direct", "nginx")]
    assert rows[1]["added_ttfb_p50_s"] == pytest.approx(0.002)
    assert rows[1]["added_ttfb_p50_s_range"] == pytest.approx([0.001, 0.003])
    proxies = [
        {"proxy": "nginx", "version": "1", "authenticates": True, "missing": None, "rss_before_bytes": 2**20,
         "rss_after_bytes": 2**21},
        {"proxy": "smg", "version": None, "authenticates": True, "missing": "pip install smg failed"},
    ]  # fmt: skip
    text = gateway({
        "overhead": rows, "proxies": proxies, "ceiling": {"requests_per_s": 5000.0, "chunks_per_s": 90000.0},
        "settings": {"repeats": 3, "chunks": 128, "chunks_per_s": 400, "requests_per_s": 40}, "date": "d",
        "hardware": {"cpu": "c", "cores": 2, "python": "3"},
    })  # fmt: skip
    assert "| nginx | whole | 8 | 0.30 [0.20, 0.40] | – | 2.00 [1.00, 3.00] | 4.00 [2.00, 6.00] |" in text
    assert "| direct |" not in text
    assert "- smg: no figures, pip install smg failed" in text
    assert "1 MiB before, 2 MiB after" in text


def test_our_work_is_told_over_the_others() -> None:
    rows = []
    for name, cpu, added in (
        ("smg", 0.001, 0.0005),
        ("litellm", 0.02, 0.02),
        ("understudy", 0.002, 0.0015),
        ("direct", None, 0.0),
    ):
        for shape in ("whole", "stream"):
            rows.append({
                "proxy": name, "shape": shape, "connections": 8, "cpu_s_per_request": cpu, "added_ttfb_p50_s": added,
                "cpu_s_per_1000_chunks": None if cpu is None or shape == "whole" else cpu * (3 if name == "understudy" else 2),
            })  # fmt: skip
    assert against(rows, "smg") == pytest.approx([2.0, 3.0])
    assert in_short(rows) == (
        "Understudy, keys and metrics on, access log off: 2.0 to 3.0 times the CPU of smg (Rust), 1/10.0 to 1/6.7 of LiteLLM's, "
        "1.5 to 1.5 ms added to the first byte (p50)."
    )
    assert in_short([]) == ""


def test_percentiles_and_sizes() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.5, 0.99, 0.01)] == [2.0, 3.0, 1.0]
    assert Plan(whole_requests=5).requests("whole", 32) == 64
