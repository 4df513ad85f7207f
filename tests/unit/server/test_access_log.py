from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from server.acceptance import AcceptanceRecord, Usage
from server.access_log import MAX_MODEL_CHARS, AccessLog
from server.exchange import CLIENT_GONE, Exchange
from tests.unit.server.test_reception import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "tenants.yaml")


def written(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_says_what_happened_and_nothing_of_the_prompt(house: House) -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    visit = house.asked(model="m", prompt="secret")
    exchange = Exchange(tenant="t", usage=Usage(4, 12), served_by=("m", "small"), acceptance=AcceptanceRecord(5, 15, 6))
    exchange.see_chunk()
    exchange.settle("200")
    log.note("chat", visit, exchange)
    left = Exchange(tenant="t")
    left.settle(CLIENT_GONE)
    log.note("chat", house.visit(), left)
    log.close()
    first, second = written(stream)
    told = {
        "request_id": visit.request_id, "tenant": "t", "route": "chat", "model": "m", "draft": "small", "status": "200",
        "refusal": None, "client_gone": False, "queued_s": None, "prompt_tokens": 4, "output_tokens": 12,
        "draft_tokens": 15, "accepted_tokens": 6,
    }  # fmt: skip
    assert told.items() <= first.items()
    assert first["time"].endswith("Z")  # type: ignore[attr-defined]
    assert first["ttft_s"] is not None
    assert (second["client_gone"], second["status"], second["output_tokens"]) == (True, CLIENT_GONE, None)
    assert "secret" not in stream.getvalue()


def test_what_clients_name_cannot_break_a_line(house: House) -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    log.note("chat", house.asked(model='x"\n{' + "y" * 500), Exchange(status="200"))
    log.close()
    assert len(str(written(stream)[0]["model"])) == MAX_MODEL_CHARS


def test_a_reader_that_is_gone_stops_nobody(house: House) -> None:
    stream = io.StringIO()
    stream.close()
    log = AccessLog(stream)
    log.note("chat", house.visit(), Exchange(status="200"))
    log.close()


def test_lines_that_were_too_many_are_counted(house: House) -> None:
    stream = io.StringIO()
    log = AccessLog(stream, max_waiting=0)
    for _ in range(3):
        log.note("chat", house.visit(), Exchange(status="200"))
    log.close()
    assert written(stream) == [{"access_log_lines_dropped": 3}]
