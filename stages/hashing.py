"""Content hashes: of text, of files, of checkpoints, of tokenizers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stages.errors import InputError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")
"""Files that decide which text a token id stands for."""


BEHAVIOUR_FILES = ("tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""Files that decide how a prompt is put to the model and how its answer is drawn unless a request says otherwise."""


def text_hash(text: str) -> str:
    """SHA-256 (hex) of a text as UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def value_hash(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of key order."""
    return text_hash(json.dumps(value, sort_keys=True, default=str))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes; InputError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 over what decides a checkpoint's outputs: config.json, weights, tokenizer, templates.

    Raises:
        InputError: when the folder is no checkpoint (no config.json or no weights).
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json there; give the folder of a Hugging Face checkpoint")
    if not weights:
        raise InputError(f"{folder}: no .safetensors weights there; save the model with save_pretrained")
    others = [folder / name for name in (*TOKENIZER_FILES, *BEHAVIOUR_FILES) if (folder / name).is_file()]
    digests = [(path.name, file_hash(path)) for path in [folder / "config.json", *weights, *others]]
    return value_hash(digests)


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over the tokenizer files alone; two checkpoints with the same hash read text the same way."""
    found = [(name, file_hash(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        raise InputError(f"{folder}: no tokenizer files ({', '.join(TOKENIZER_FILES)}) there")
    return value_hash(found)
