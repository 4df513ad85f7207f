from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Refusal
from server.facts import read_facts, wants_no_draft
from server.prefixes import HEAD_BYTES


@pytest.mark.parametrize(
    ("payload", "because"),
    [({}, None), ({"min_p": 0}, None), ({"min_p": None}, None), ({"min_p": 1e-6}, None), ({"min_p": 0.1}, "min_p"),
     ({"min_p": "0.1"}, "min_p"), ({"min_p": "x"}, None), ({"min_p": -1}, None), ({"min_p": [1]}, None),
     ({"logit_bias": {}}, None), ({"logit_bias": None}, None), ({"logit_bias": {"5": 1}}, "logit_bias")],
)  # fmt: skip
def test_what_a_draft_refuses_is_what_vllm_refuses(payload: dict[str, Any], because: str | None) -> None:
    assert read_facts(payload, samples=True, with_head=False).plain_because == because
    assert read_facts(payload, samples=False, with_head=False).plain_because is None


def test_the_head_is_the_prompts_beginning_in_any_shape_and_is_not_shown() -> None:
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
    heads = [
        read_facts(one, samples=True, with_head=True).head
        for one in (chat, {"prompt": "hello"}, {"input": "hello"}, {"prompt": ["hello", "x"]})
    ]
    assert all(b"hello" in head for head in heads)
    assert read_facts({"prompt": [1, 2]}, samples=True, with_head=True).head == b"[1, 2]\n"
    assert "hello" not in repr(read_facts(chat, samples=True, with_head=True))
    assert read_facts(chat, samples=True, with_head=False).head == b""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["messages", "prompt", "input"]), JSON)
def test_no_body_is_too_odd(key: str, value: Any) -> None:
    facts = read_facts({key: value, "model": value, "min_p": value, "logit_bias": value}, samples=True, with_head=True)
    assert len(facts.head) <= HEAD_BYTES


def test_a_deeply_nested_body_is_not_followed_down() -> None:
    read_facts(json.loads('{"messages":' + "[" * 900 + "]" * 900 + "}"), samples=True, with_head=True)


@pytest.mark.parametrize(("header", "off"), [(None, False), ("on", False), (" Off ", True)])
def test_the_header_says_on_or_off(header: str | None, off: bool) -> None:
    assert wants_no_draft(header) is off
    with pytest.raises(Refusal, match="must be on or off, given 'never'"):
        wants_no_draft("never")
    with pytest.raises(Refusal):
        wants_no_draft("")
