from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from server import sse

ENDS = [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"]
PIECES = st.sampled_from([b"data: a", b"data: [DONE]", b": note", b"x", *ENDS])
STREAMS = st.lists(PIECES, max_size=40).map(b"".join)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


def events_of(chunks: list[bytes], limit: int = 1000) -> tuple[list[sse.Event], bytes]:
    splitter = sse.EventSplitter(limit)
    events = [event for chunk in chunks for event in splitter.feed(chunk)]
    return events, splitter.rest()


@given(STREAMS | st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=20), st.integers(4, 50))
def test_events_joined_are_the_stream(stream: bytes, places: list[int], limit: int) -> None:
    events, rest = events_of(cut(stream, places), limit)
    assert b"".join(event.data for event in events) + rest == stream


@given(STREAMS, st.lists(st.integers(min_value=0), max_size=20))
def test_events_do_not_depend_on_how_the_network_cut_the_stream(stream: bytes, places: list[int]) -> None:
    whole, rest = events_of([stream])
    pieces, other_rest = events_of(cut(stream, places))
    # A lone CR at the end of everything may be half of an end of line, so it waits in the rest either way.
    assert (whole, rest) == (pieces, other_rest)


def test_an_event_is_given_out_as_soon_as_its_blank_line_is_there() -> None:
    splitter = sse.EventSplitter(1000)
    assert splitter.feed(b"data: 1\n") == []
    assert splitter.feed(b"\ndata: 2") == [sse.Event(b"data: 1\n\n", True)]
    assert splitter.feed(b"\r\n\r\n") == [sse.Event(b"data: 2\r\n\r\n", True)]


def test_a_long_event_passes_in_pieces_that_are_not_whole() -> None:
    events, rest = events_of([b"data: " + b"x" * 100, b"y\n\ndata: 2\n\n"], limit=20)
    assert [event.whole for event in events] == [False, False, True]
    assert rest == b""


def test_data_of_events() -> None:
    assert sse.data_of(b'data: {"a": 1}\n\n') == b'{"a": 1}'
    assert sse.data_of(b"\ndata:x\r\n\r\n") == b"x"
    assert sse.data_of(b"event: e\ndata: 1\ndata: 2\n\n") == b"1\n2"
    assert sse.data_of(b": keep-alive\n\n") is None


def test_json_of_what_is_no_object_is_none() -> None:
    assert [sse.json_of(data) for data in (b"[1]", b"{", b"\xff", b'{"a":1}')] == [None, None, None, {"a": 1}]
