import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests.sse import Events

STREAM = (
    b': keep-alive\n\ndata: {"a": "caf\xc3\xa9"}\r\n\r\nevent: x\nid: 3\ndata: one\ndata:two\n\n\n'
    b"data: [DONE]\r\rdata\n\ndata: cut"
)
FOUND = [b'{"a": "caf\xc3\xa9"}', b"one\ntwo", b"[DONE]", b""]


def slow_reference(stream: bytes) -> list[bytes]:
    """All at once, as the standard says it."""
    text = re.sub(rb"\r\n|\r", b"\n", stream)
    found = []
    for block in text.split(b"\n\n")[:-1]:
        data = [
            line[5:].removeprefix(b" ")
            for line in (row if b":" in row else row + b":" for row in block.split(b"\n"))
            if line.startswith(b"data:")
        ]
        found += [b"\n".join(data)] if data else []
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_however_the_stream_is_cut(cuts: list[int]) -> None:
    events, places = Events(), sorted({0, *cuts, len(STREAM)})
    found = [event for a, b in itertools.pairwise(places) for event in events.feed(STREAM[a:b])]
    assert found == slow_reference(STREAM)


def test_every_byte_by_itself() -> None:
    events = Events()
    found = [event for i in range(len(STREAM)) for event in events.feed(STREAM[i : i + 1])]
    assert [event for event in found if event] == FOUND[:-1]


def test_an_event_is_given_as_soon_as_it_is_complete() -> None:
    events = Events()
    assert events.feed(b"data: a\n") == []
    assert events.feed(b"\ndata: b") == [b"a"]
    assert events.feed(b"\n\n") == [b"b"]
