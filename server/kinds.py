"""Kinds of output, as it comes or forced into shape by a grammar; and kinds of prompts, which only clients know."""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Any


class Kind(enum.Enum):
    """Label `kind` of the acceptance metrics: drafts do not know the grammar, so structured output is accepted otherwise."""

    PLAIN = "plain"
    STRUCTURED = "structured"


GRAMMARS = (
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "guided_decoding_backend", "structural_tag",
)  # fmt: skip
"""Fields of a request by which vLLM (its older names included) is given a grammar."""


PROMPT_HEADER = "X-Understudy-Kind"
"""By which a client may name its prompt's kind, of those in the settings (`prompt_kinds`)."""

TOTAL = "all"
"""What a comparison calls all kinds together."""
TAKEN = frozenset({TOTAL, *(kind.value for kind in Kind)})
"""Names that no kind of prompt can have."""


def prompt_kind_of(named: str | None, known: Collection[str], route: str) -> str:
    """The kind of a prompt: the one that its client names, if the settings know it, else its route."""
    return named if named is not None and named in known else route


def kind_of(payload: dict[str, Any]) -> Kind:
    """The kind of output that a request body asks for; nothing in it needs to be well-formed."""
    forced = _forces_format(payload) or _forces_tool(payload) or any(payload.get(key) for key in GRAMMARS)
    return Kind.STRUCTURED if forced else Kind.PLAIN


def _forces_format(payload: dict[str, Any]) -> bool:
    """``response_format`` other than text."""
    wanted = payload.get("response_format")
    return isinstance(wanted, dict) and wanted.get("type", "text") != "text"


def _forces_tool(payload: dict[str, Any]) -> bool:
    """Tools of which one must be called: then the engine forces the arguments' schema."""
    choice = payload.get("tool_choice")
    return bool(payload.get("tools")) and (choice == "required" or isinstance(choice, dict))
