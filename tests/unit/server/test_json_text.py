from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.json_text import JsonText

TEXTS = st.lists(st.sampled_from(["a", "é", '"', "\\", "\u2028", "😀", "\n", "usage"]), max_size=4).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from(["usage", "choices", "é", '"', "metrics", "usage "]), VALUES, max_size=5)
SPACE = st.sampled_from(["", " ", "\n\t", "\r\n "])


@given(OBJECTS, SPACE, SPACE, st.booleans(), st.sampled_from([None, 1]))
def test_it_reads_what_json_reads(value: dict[str, Any], before: str, after: str, ascii_: bool, indent: Any) -> None:
    text = before + json.dumps(value, ensure_ascii=ascii_, indent=indent) + after
    read = JsonText.read(text.encode())
    assert read is not None
    assert read.values == value
    assert all(json.loads(text[start:end]) == value[key] for key, (start, end) in read.spans.items())


@given(OBJECTS, VALUES, VALUES, SPACE, st.booleans())
def test_all_bytes_but_the_replaced_value_stay(
    value: dict[str, Any], old: Any, new: Any, space: str, ascii_: bool
) -> None:
    """Whatever stands around it: the same key before it and inside other values, escapes, spaces."""
    before = json.dumps({**value, "x": {"usage": '"usage"'}}, ensure_ascii=ascii_)[:-1]
    text = f'{before},{space}"usage"{space}:{space}{json.dumps(old)}{space}, "y": {{"usage": 1}} }}'
    read = JsonText.read(text.encode())
    assert read is not None
    replaced = read.replaced("usage", new).decode()
    start, end = read.spans["usage"]
    written = json.dumps(new, separators=(",", ":"))
    assert replaced == text[:start] + written + text[end:]
    assert json.loads(replaced) == {**json.loads(text), "usage": new}


@pytest.mark.parametrize(
    "data",
    [b"", b" ", b"[1]", b"3", b"{", b'{"a"', b'{"a":', b'{"a":1', b'{"a":1,', b'{"a":1,}', b'{"a" 1}', b"{a:1}", b'{"a":1}x',
     b'{"a":1 "b":2}', b'{1:2}', b"{}}", b"\xff", b'{"a":"\xff"}', b'{"a":' + b"[" * 100_000],
)  # fmt: skip
def test_what_is_no_object_is_none(data: bytes) -> None:
    assert JsonText.read(data) is None


def test_an_empty_object_is_one() -> None:
    read = JsonText.read(b" { } ")
    assert read is not None
    assert read.values == {}


def test_of_a_key_given_twice_the_last_counts_and_is_replaced() -> None:
    read = JsonText.read(b'{"a":1, "a":2}')
    assert read is not None
    assert (read.values, read.replaced("a", 3)) == ({"a": 2}, b'{"a":1, "a":3}')
