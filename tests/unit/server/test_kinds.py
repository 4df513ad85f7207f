from __future__ import annotations

from typing import Any

import pytest

from server.kinds import Kind, kind_of

TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "payload",
    [{"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_schema", "json_schema": {}}},
     {"guided_regex": "a+"}, {"structured_outputs": {"choice": ["a", "b"]}}, {"tools": [TOOL], "tool_choice": "required"},
     {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}],
)  # fmt: skip
def test_what_a_grammar_forces_is_structured(payload: dict[str, Any]) -> None:
    assert kind_of(payload) is Kind.STRUCTURED


@pytest.mark.parametrize(
    "payload",
    [{}, {"response_format": {"type": "text"}}, {"response_format": None}, {"response_format": 3}, {"guided_json": None},
     {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": "auto"}, {"tool_choice": "required"}, {"tool_choice": {}}],
)  # fmt: skip
def test_all_else_is_plain(payload: dict[str, Any]) -> None:
    assert kind_of(payload) is Kind.PLAIN
