"""The filter between engine and client, without sockets: whatever the chunks, only the usage object may differ."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.acceptance import AcceptanceRecord, Missing
from server.exchange import Exchange
from server.inbound import Inbound, Route
from server.metrics import Metrics
from server.settings import GatewaySettings
from server.stream import StreamReader
from tests.unit.server.answers import DONE, KEEP_ALIVE, ONE, RECORD, ROLE, TWO

CHAT = Route("/v1/chat/completions", "chat", generates=True)
SETTINGS = GatewaySettings(engine_url="http://127.0.0.1:1", draft_name="d")
METRICS = Metrics(SETTINGS)
USAGE = '{"choices":[], "usage":%s ,"metrics": ' + json.dumps({**RECORD, "note": 'a "usage": 1, é'}) + "}"
COUNTS = '{"prompt_tokens":4,"completion_tokens":12}'
TOLD = (
    '{"prompt_tokens":4,"completion_tokens":12,'
    '"completion_tokens_details":{"accepted_prediction_tokens":6,"rejected_prediction_tokens":9}}'
)
CONTINUOUS = (
    b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"prompt_tokens":4,"completion_tokens":1}}\n\n'
)
EVENTS = st.lists(st.sampled_from([ROLE, ONE, TWO, KEEP_ALIVE, CONTINUOUS]), max_size=8).map(b"".join)


def usage_event(usage: str, end: bytes = b"\n\n") -> bytes:
    return b"data: " + (USAGE % usage).encode() + end


def relayed(stream: bytes, places: list[int], wants_usage: bool, details: bool = True) -> tuple[bytes, Exchange]:
    exchange = Exchange()
    settings = SETTINGS.model_copy(update={"usage_details": details})
    reader = StreamReader(CHAT, Inbound(b"", wants_usage, 1), exchange, settings, METRICS)
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    passed = b"".join(reader.feed(stream[start:end]) for start, end in itertools.pairwise(edges))
    reader.check_end()
    return passed, exchange


@given(
    EVENTS,
    st.lists(st.integers(min_value=0), max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_only_the_usage_object_may_differ(
    before: bytes, places: list[int], wants_usage: bool, details: bool, end: bytes
) -> None:
    passed, exchange = relayed(before + usage_event(COUNTS, 2 * end) + DONE, places, wants_usage, details)
    told = usage_event(TOLD if details else COUNTS, 2 * end) if wants_usage else b""
    assert passed == before + told + DONE
    assert exchange.acceptance == AcceptanceRecord(5, 15, 6)


@pytest.mark.parametrize("usage", ["null", '{"completion_tokens":12}'])
def test_a_chunk_without_a_record_stays_as_it_is(usage: str) -> None:
    stream = ONE + b'data: {"choices":[],"usage":%s}\n\n' % usage.encode() + DONE
    passed, exchange = relayed(stream, [], wants_usage=True)
    assert (passed, exchange.acceptance) == (stream, Missing.ABSENT)
