"""Makes the prompt files: ``python -m reference.make_prompts`` writes reference/prompts/{train,validation,heldout}.jsonl.

Code prompts are the lines before and at the start of a function, to be continued; chat prompts are questions about
documented functions. All come from standard-library files, each file in one split only: training prompts are for
self-distillation, validation prompts for choosing settings, held-out prompts for published figures and nothing else.
"""

from __future__ import annotations

import ast
import json
import random
from pathlib import Path
from typing import Any

import typer

from reference.chat_pairs import chat_pairs
from reference.corpus import SourceFile, check_disjoint, collect
from stages.folders import write_text

CONTEXT_CHARS = 600
REFERENCE_CHARS = 400
"""Characters of the true continuation that a training prompt carries, for data modes that use references."""

TRAIN_CODE, TRAIN_CHAT = 1800, 1200
"""Prompts of each kind for self-distillation."""

FOLDER = Path(__file__).parent / "prompts"


def code_prompts(file: SourceFile) -> list[dict[str, Any]]:
    """One prompt per function: up to 600 characters of what stands before, its ``def`` and the next one or two lines."""
    lines = file.text.splitlines(keepends=True)
    records = []
    for node in ast.walk(ast.parse(file.text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (node.end_lineno or 0) - node.lineno < 6:
            continue
        cut = node.body[0].lineno + random.Random(f"{file.name}:{node.lineno}").randint(0, 1)
        text, line = "", cut - 1
        while line >= 0 and len(text) + len(lines[line]) <= CONTEXT_CHARS:
            text = lines[line] + text
            line -= 1
        if (
            text.strip() and text.isascii()
        ):  # a trailing newline would split a token that the tokenizer joins with indentation
            true = text[len(text.rstrip()) :] + "".join(lines[cut : node.end_lineno])
            records.append(
                {"kind": "code", "source": file.name, "prompt": text.rstrip(), "reference": true[:REFERENCE_CHARS]}
            )
    return records


def chat_prompts(files: list[SourceFile]) -> list[dict[str, Any]]:
    """The questions of the chat pairs, as one-message conversations."""
    return [
        {"kind": "chat", "source": pair["source"], "messages": [{"role": "user", "content": pair["question"]}]}
        | {"reference": pair["answer"]}
        for pair in chat_pairs(files)
        if len(pair["question"]) <= 2 * CONTEXT_CHARS
    ]


def text_of(record: dict[str, Any]) -> str:
    """What makes two prompts the same."""
    return json.dumps(record.get("prompt") or record["messages"])


def choose(records: list[dict[str, Any]], count: int, seed: str, used: set[str]) -> list[dict[str, Any]]:
    """A seeded choice of ``count`` records with texts that are distinct and not ``used`` yet; adds them to it."""
    fresh = list({text_of(record): record for record in records if text_of(record) not in used}.values())
    chosen = random.Random(seed).sample(fresh, min(count, len(fresh)))
    used.update(map(text_of, chosen))
    return chosen


def make(files: list[SourceFile], name: str, num_code: int, num_chat: int, used: set[str]) -> list[dict[str, Any]]:
    """Prompts of some files, mixed, none of them ``used`` before.

    Args:
        name: seeds the choice and the order.
    """
    code = [record for file in files for record in code_prompts(file)]
    made = choose(code, num_code, f"code-{name}", used)
    made += choose(chat_prompts(files), num_chat, f"chat-{name}", used)
    random.Random(f"order-{name}").shuffle(made)
    return made


def main(
    train_code: int = typer.Option(TRAIN_CODE, help="code prompts for self-distillation"),
    train_chat: int = typer.Option(TRAIN_CHAT, help="chat prompts for self-distillation"),
    validation_code: int = typer.Option(60, help="code prompts for choosing settings"),
    validation_chat: int = typer.Option(60, help="chat prompts for choosing settings"),
    heldout_code: int = typer.Option(200, help="held-out code prompts"),
    heldout_chat: int = typer.Option(120, help="held-out chat prompts"),
) -> None:
    """Write the training, validation and held-out prompt files."""
    files = collect()
    check_disjoint(files)
    counts = {
        "heldout": (heldout_code, heldout_chat),
        "validation": (validation_code, validation_chat),
        "train": (train_code, train_chat),
    }
    used: set[str] = set()
    for split, (num_code, num_chat) in counts.items():
        own = [file for file in files if file.split == split and file.name.startswith("stdlib/")]
        records = make(own, split, num_code, num_chat, used)
        if split != "train":
            records = [{key: value for key, value in record.items() if key != "reference"} for record in records]
        write_text(FOLDER / f"{split}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        print(f"{FOLDER.name}/{split}.jsonl: {len(records)} prompts")


if __name__ == "__main__":
    typer.run(main)
