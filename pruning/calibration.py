"""Calibration: texts and prompt records -> token batches. They serve statistics only, never evaluation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruning.settings import TextSettings
from stages.errors import InputError
from stages.hashing import value_hash

PIECE_CHARACTERS = 8
"""A plain text is cut into pieces of this many characters per wanted token before it is tokenised, then to length."""


@dataclass(frozen=True)
class Sample:
    """One calibration text: a string, or a conversation for the chat template; ``source`` says where it came from."""

    source: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T] int64, padded on the right, and their attention mask [B, T] (1 = token, 0 = padding)."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        return int(self.attention_mask.sum())

    def last(self) -> torch.Tensor:
        """Index [B] of each sample's last token that is not padding."""
        return self.attention_mask.sum(dim=1) - 1

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass(frozen=True)
class Calibration:
    """Token batches, and a hash of exactly the tokens in them."""

    batches: tuple[Batch, ...]
    num_samples: int
    num_tokens: int
    sha256: str


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The file's lines with their numbers; InputError names the file, or the line that is no UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a .jsonl of prompts or a plain text"
        ) from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty; give a .jsonl of prompts or a plain text")
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: line {number} is not UTF-8 text") from error


def _messages(value: Any, source: str) -> tuple[dict[str, Any], ...]:
    """Checks a conversation: a list of objects with a role and a content, both strings, at least one."""
    if not isinstance(value, list) or not value:
        raise InputError(f'{source}: "messages" must be a list of {{"role": …, "content": …}}, at least one')
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise InputError(f'{source}: each message needs a "role" and a "content", both strings')
    return tuple(value)


def parse_record(line: str, source: str) -> Sample:
    """One JSONL line: an object with "prompt" (a text) or "messages" (a conversation); other keys are left alone.

    Raises:
        InputError: with ``source`` (file and line number) and what is wrong.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{source} is not valid JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise InputError(f'{source} must be an object with either "prompt" or "messages"')
    if "messages" in record:
        return Sample(source, messages=_messages(record["messages"], source))
    if not isinstance(record["prompt"], str) or not record["prompt"].strip():
        raise InputError(f'{source}: "prompt" must be a text that is not empty')
    return Sample(source, text=record["prompt"])


def read_samples(path: Path, sequence_length: int) -> list[Sample]:
    """Reads prompts from a .jsonl file, or cuts any other file, as plain text, into pieces.

    Raises:
        InputError: unreadable or empty file; malformed line, with its number. Blank lines of a .jsonl file are skipped.
    """
    lines = _decoded_lines(path)
    if path.suffix == ".jsonl":
        return [parse_record(line, f"{path}: line {number}") for number, line in lines if line.strip()]
    text, length = "\n".join(line for _, line in lines), sequence_length * PIECE_CHARACTERS
    return [Sample(str(path), text=text[start : start + length]) for start in range(0, len(text), length)]


def token_ids(sample: Sample, tokenizer: Any) -> list[int]:
    """Token ids as the engine would see them: through the chat template, or with the tokenizer's own special tokens."""
    if sample.messages is None:
        return list(tokenizer(sample.text)["input_ids"])
    if not tokenizer.chat_template:
        raise InputError(f'{sample.source}: "messages", but the target has no chat template; give "prompt" records')
    try:
        asks = sample.messages[-1]["role"] == "user"
        text = tokenizer.apply_chat_template(list(sample.messages), tokenize=False, add_generation_prompt=asks)
    except Exception as error:  # a template is a program of the target's author and raises what it likes
        raise InputError(f"{sample.source}: the target's chat template refuses it: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pad(sequences: Sequence[Sequence[int]]) -> Batch:
    """Puts sequences of token ids into one batch, padded on the right with id 0 under a mask of 0."""
    shape = (len(sequences), max(map(len, sequences)))
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return Batch(ids, mask)


def take(samples: Sequence[Sample], tokenizer: Any, num_tokens: int, settings: TextSettings) -> Calibration:
    """Takes samples in an order given by the seed until there are ``num_tokens`` tokens; the last one is cut to fit.

    Raises:
        InputError: when all samples together are too short, with how many tokens there are and how many are needed.
    """
    shuffled = random.Random(settings.seed).sample(list(samples), len(samples))
    sequences: list[list[int]] = []
    missing = num_tokens
    for sample in shuffled:
        ids = token_ids(sample, tokenizer)[: min(settings.sequence_length, missing)]
        if ids:
            sequences.append(ids)
            missing -= len(ids)
        if missing == 0:
            break
    if missing:
        raise InputError(
            f"the calibration text has {num_tokens - missing} tokens (samples cut at {settings.sequence_length}), "
            f"{num_tokens} are needed: add text or lower calibration_tokens"
        )
    ordered = sorted(sequences, key=len)  # little padding in each batch
    starts = range(0, len(ordered), settings.batch_size)
    batches = tuple(pad(ordered[start : start + settings.batch_size]) for start in starts)
    return Calibration(batches, len(ordered), num_tokens, value_hash(ordered))


def load_samples(paths: Sequence[Path], sequence_length: int) -> list[Sample]:
    """All samples of all files; InputError when no file is given."""
    if not paths:
        raise InputError("no calibration text given; name at least one .jsonl of prompts or plain text file")
    return [sample for path in paths for sample in read_samples(path, sequence_length)]
