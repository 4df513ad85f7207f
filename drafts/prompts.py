"""Prompts as JSONL: plain text to continue, or chat messages to answer; each with a kind and a stable id."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from stages.errors import InputError
from stages.hashing import value_hash
from stages.settings import Settings, describe


class Message(Settings):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Prompt(Settings):
    """One prompt: exactly one of ``prompt`` (text to continue) and ``messages`` (chat to answer).

    Attributes:
        kind: group that tables are split by, e.g. ``code`` or ``chat``.
        source: the file it was made from, for splits by file.
        reference: a right answer, for data modes that use one; never shown to the draft as part of the prompt.
    """

    prompt: str | None = Field(default=None, min_length=1)
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    kind: str = "prompt"
    source: str | None = None
    reference: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> Prompt:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError('give exactly one of "prompt" and "messages"')
        return self

    @property
    def text(self) -> str:
        """All the prompt's text; equal texts are equal prompts."""
        return self.prompt if self.prompt is not None else "\n".join(m.content for m in self.messages or ())

    @property
    def id(self) -> str:
        """First 16 hex digits of the hash of what is asked: route, roles and text."""
        return value_hash(self.request())[:16]

    def request(self) -> tuple[str, dict[str, Any]]:
        """The OpenAI route this prompt goes to and the part of the body that carries it."""
        if self.prompt is not None:
            return "/v1/completions", {"prompt": self.prompt}
        return "/v1/chat/completions", {"messages": [m.model_dump() for m in self.messages or ()]}


def read_prompts(path: Path) -> list[Prompt]:
    """Reads a JSONL file of prompts.

    Raises:
        InputError: file missing, empty, or a line that is no prompt (the line's number and fault are named).
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error}); give a JSONL file of prompts") from error
    prompts = [_parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InputError(f'{path}: has no prompts; one JSON object a line, e.g. {{"prompt": "def main("}}')
    return prompts


def _parse(line: str, where: str) -> Prompt:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f'{where}: must be an object with "prompt" or "messages", found {type(values).__name__}')
    try:
        return Prompt.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error, Prompt)}") from error


def prompts_hash(prompts: list[Prompt]) -> str:
    """Hash of a list of prompts with their kinds, sources and references, order included."""
    dumped = [prompt.model_dump() for prompt in prompts]
    return value_hash([{k: v for k, v in d.items() if k != "reference" or v is not None} for d in dumped])


def refuse_overlap(training: list[Prompt], heldout: list[Prompt]) -> None:
    """Raises InputError if a held-out prompt, or a file held-out prompts were made from, is also training material."""
    known = {prompt.text for prompt in training}
    sources = {prompt.source for prompt in training if prompt.source}
    for prompt in heldout:
        if prompt.text in known:
            raise InputError(f"held-out prompt {prompt.id} ({prompt.source or prompt.kind}) is also a training prompt")
        if prompt.source in sources:
            raise InputError(f"held-out prompts from {prompt.source} share their source file with training prompts")


def sample(prompts: list[Prompt], per_kind: int | None, seed: int) -> list[Prompt]:
    """A seeded sample of at most ``per_kind`` prompts of each kind, in the file's order; all of them when None."""
    if per_kind is None:
        return prompts
    chosen: set[int] = set()
    for kind in sorted({prompt.kind for prompt in prompts}):
        places = [place for place, prompt in enumerate(prompts) if prompt.kind == kind]
        chosen.update(random.Random(f"{seed}-{kind}").sample(places, min(per_kind, len(places))))
    return [prompts[place] for place in sorted(chosen)]


def draw(prompts: list[Prompt], count: int | None, seed: int) -> list[Prompt]:
    """A seeded sample of ``count`` prompts over the whole file, in its order; all of them when None."""
    if count is None or count >= len(prompts):
        return prompts
    return [prompts[place] for place in sorted(random.Random(seed).sample(range(len(prompts)), count))]
