"""Prompts to ask: JSONL, chat messages or text to continue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.errors import InputError

Route = Literal["chat", "completions"]
PATHS: dict[Route, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        content: the part of a request's body that carries it.
        chars: length of its text.
    """

    kind: str
    route: Route
    content: dict[str, Any]
    chars: int


def parse_prompt(line: str, where: str) -> Prompt:
    """One line of the file.

    Raises:
        InputError: it is no prompt; ``where`` is named.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON; one object a line") from error
    messages, text = (value.get("messages"), value.get("prompt")) if isinstance(value, dict) else (None, None)
    if isinstance(text, str) and text and messages is None:
        return Prompt(str(value.get("kind", "prompt")), "completions", {"prompt": text}, len(text))
    if isinstance(messages, list) and messages and text is None:
        said = [message.get("content") if isinstance(message, dict) else None for message in messages]
        texts = [part for part in said if isinstance(part, str)]
        if len(texts) == len(messages):
            return Prompt(str(value.get("kind", "chat")), "chat", {"messages": messages}, sum(map(len, texts)))
    raise InputError(
        f'{where}: give exactly one of "prompt" (text) and "messages" (a list, each with a text as "content")'
    )


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a file of prompts.

    Raises:
        InputError: the file is missing or empty, or a line is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); give a JSONL file of prompts") from error
    found = [parse_prompt(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path}: has no prompts")
    return found
