"""Requests and outcomes for tests."""

from __future__ import annotations

from typing import Any

from loadtests.answers import Outcome, Speculation
from loadtests.prompts import Prompt, read_prompts
from loadtests.schedule import Request
from loadtests.settings import PROMPTS

PACKAGED = read_prompts(PROMPTS)
CHAT = Prompt("chat", "chat", {"messages": [{"role": "user", "content": "Hello"}]}, 5)


def request(place: int = 0, stream: bool = True, at_s: float | None = None, tenant: str = "default") -> Request:
    return Request(place, CHAT, stream, 16, 0.0, tenant, 7, at_s)


def outcome(place: int = 0, **more: Any) -> Outcome:
    """A streamed answer of 11 tokens: the first after 0.1 s, the last after 1.1 s."""
    usual: dict[str, Any] = {
        "kind": "chat", "name": "chat streamed", "tenant": "default", "due_s": 0.0, "sent_s": 0.0, "ttft_s": 0.1,
        "e2e_s": 1.1, "prompt_tokens": 5, "completion_tokens": 11,
    }  # fmt: skip
    return Outcome(place=place, **{**usual, **more})


def drafted(place: int, accepted: int, proposed: int, drafts: int, **more: Any) -> Outcome:
    return outcome(place, speculation=Speculation(drafts, proposed, accepted), **more)
