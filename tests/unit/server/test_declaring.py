from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.declaring import (
    MEDIA_TOKENS,
    MESSAGE_TOKENS,
    UNDECLARED,
    declared_output,
    declared_tokens,
    estimate_prompt,
    with_limit,
)


@pytest.mark.parametrize(
    ("route", "payload", "output"),
    [("chat", {}, None), ("chat", {"max_tokens": 5}, 5), ("chat", {"max_tokens": 5, "max_completion_tokens": 7}, 7),
     ("chat", {"max_tokens": None}, None), ("chat", {"max_tokens": True}, None), ("chat", {"max_tokens": -1}, 0),
     ("completions", {}, 16), ("completions", {"max_tokens": 5}, 5), ("embeddings", {}, 0),
     ("responses", {"max_output_tokens": 9}, 9), ("responses", {"max_tokens": 9}, None)],
)  # fmt: skip
def test_what_a_request_declares(route: str, payload: dict[str, Any], output: int | None) -> None:
    assert declared_output(route, payload) == output


def test_a_limit_is_written_only_where_there_is_none() -> None:
    assert with_limit("chat", {"a": 1}, 9) == {"a": 1, "max_completion_tokens": 9}
    assert with_limit("responses", {}, 9) == {"max_output_tokens": 9}
    for payload in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        assert with_limit("chat", payload, 9) is payload
    assert with_limit("completions", {}, 9) == {}
    assert with_limit("embeddings", {}, 9) == {}
    assert with_limit("chat", {}, None) == {}


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [({"prompt": "x" * 30}, 10), ({"prompt": "é" * 30}, 20), ({"prompt": [1, 2, 3]}, 3), ({"prompt": [[1, 2], [3]]}, 3),
     ({"prompt": ["xxx", "xxxx"]}, 3), ({"input": "x" * 30}, 10), ({}, 0), ({"messages": 3}, 0), ({"prompt": 3}, 0),
     ({"messages": [{"role": "user", "content": "x" * 30}, {"role": "user", "content": None}]}, 10 + 2 * MESSAGE_TOKENS),
     ({"messages": [{"content": [{"type": "text", "text": "xxx"}, {"type": "image_url", "image_url": {}}]}]},
      1 + MEDIA_TOKENS + MESSAGE_TOKENS),
     ({"messages": ["x"]}, 0), ({"tools": [{"a": 1}]}, 4)],
)  # fmt: skip
def test_about_how_many_tokens_a_prompt_has(payload: dict[str, Any], tokens: int) -> None:
    assert estimate_prompt(payload, 3.0) == tokens


def test_every_sequence_counts() -> None:
    assert sum(declared_tokens("chat", {"max_tokens": 10, "prompt": [1, 2]}, 3, 3.0)) == 2 + 3 * 10
    assert sum(declared_tokens("chat", {}, 2, 3.0)) == 2 * UNDECLARED


def test_deep_prompts_do_no_harm() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    estimate_prompt({"prompt": deep, "messages": [{"content": deep}]}, 3.0)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_prompt_makes_the_gateway_fail(value: Any) -> None:
    for key in ("prompt", "input", "messages", "tools", "max_tokens"):
        assert sum(declared_tokens("chat", {key: value}, 1, 3.0)) >= 0
