"""Evaluates the trained target on held-out text and prompts and writes its card:
``python -m reference.write_card --trained build/reference-target --out reference/target``."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from drafts.client import Sampling, ask_all
from drafts.looping import loops
from drafts.methods import MODEL
from drafts.prompts import Prompt, read_prompts
from pruning.checkpoint import load_target
from reference.chat_pairs import chat_pairs
from reference.corpus import SourceFile, collect
from reference.data import chat_text, encode_documents
from reference.train_target import evaluate
from server.engine import LocalEngine
from server.engine_command import EngineSettings
from stages import provenance
from stages.folders import write_text
from stages.hashing import checkpoint_hash

CONCURRENCY = 32


def greedy(target: Path, prompts: Sequence[Prompt], max_tokens: int, log_file: Path) -> list[str]:
    """Greedy continuations, from the engine that serves the target."""
    settings = EngineSettings(
        model=target, served_model_name=MODEL, max_model_len=512, max_num_seqs=CONCURRENCY, log_file=log_file
    )
    with LocalEngine(settings) as engine:
        answers, _ = asyncio.run(ask_all(engine.url, MODEL, prompts, Sampling(max_tokens, stream=False), CONCURRENCY))
    return [answer.text for answer in answers]


def held_out_losses(model: Any, tokenizer: Any, files: Sequence[SourceFile]) -> dict[str, float]:
    """Nats per token and bits per byte on held-out source files, nats per token on held-out chat."""
    chosen = [file for file in files if file.split == "heldout"]
    documents: list[np.ndarray] = encode_documents(tokenizer, [file.text for file in chosen])
    num_bytes = sum(len(file.text.encode()) for file in chosen)
    chats = encode_documents(tokenizer, [chat_text(chat) for chat in chat_pairs(chosen)])
    nats, bits = evaluate(model, documents, num_bytes, 512)
    return {"nats_per_token": nats, "bits_per_byte": bits, "chat_nats_per_token": evaluate(model, chats, 1, 512)[0]}


def forget_the_machine(folder: Path) -> None:
    """Drops from the tokenizer's config what transformers notes about the place it was once loaded from."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    write_text(path, json.dumps(kept, indent=2) + "\n")


def leg_line(number: int, leg: dict[str, Any]) -> str:
    """One row of the card's table of training legs."""
    settings = leg["settings"]
    return (
        f"| {number} | {settings['tokens_short']:,} + {settings['tokens_long']:,} | {settings['seed']} | "
        f"{settings['muon_lr']} / {settings['adam_lr']} | {settings['decay_share']:.0%} | "
        f"{settings['ditto_share']:.0%}{' own loops' if settings.get('looping_outputs_sha256') else ''}, "
        f"{settings['ditto_lambda']}, {settings['ditto_weight']} |"
    )


def card(record: dict[str, Any], legs: Sequence[dict[str, Any]]) -> str:
    """README.md of the target's folder."""
    losses, loop, settings = record["held_out"], record["looping"], legs[-1]["settings"]
    shares = ", ".join(f"{kind} {loop[kind]:.1%}" for kind in ("code", "chat", "all"))
    tokens = sum(leg["settings"]["tokens_short"] + leg["settings"]["tokens_long"] for leg in legs)
    parts = dict(settings["shares"])
    rows = "\n".join(leg_line(number, leg) for number, leg in enumerate(legs, 1))
    return f"""# Reference target

A Llama of 24 layers, hidden size 192, 6 query and 2 key-value heads, 10.2 M parameters, bf16, byte-level BPE of 4,096
tokens with a chat template. Deep and narrow, so that a draft of one or two layers costs a small
share of a step on a CPU engine, as it does for a large model on a GPU. It writes plausible Python and docstrings; it knows nothing.

| held-out files and prompts | |
|---|---|
| source files | {losses["nats_per_token"]:.3f} nats/token, {losses["bits_per_byte"]:.3f} bits/byte |
| chat pairs | {losses["chat_nats_per_token"]:.3f} nats/token |
| greedy continuations that loop ({record["max_tokens"]} tokens) | {shares} |

Looping: somewhere in the output a span of at most 48 tokens follows itself at least three times in a row, over at least 24
tokens (`drafts/looping.py`).

Trained by `python -m reference.train_target` on {tokens:,} tokens (standard library {parts["stdlib"]:.0%}, chat pairs made
from it {parts["chat"]:.0%}, dependencies {parts["dependencies"]:.0%}) with Muon and AdamW, in legs (`--start-from`),
each with its own warm-up and decay to zero and, while the rates fall, the DITTO loss (arXiv 2206.02369) on a share of
the rows: repeated spans of text, or ("own loops") greedy continuations of training prompts that loop, as `python -m
reference.looping_outputs` wrote them. No layer was ever copied. Two CPU cores, bf16, libiomp5 preloaded.

| leg | tokens in windows of 256 + 512 | seed | rates Muon / AdamW | decay | DITTO: rows, lambda, weight |
|---|---|---|---|---|---|
{rows}

Files are split by name into train, validation and held-out; `files.json` has the split and SHA-256 of each. Training text:
the Python {record["versions"]["python"]} standard library without tests and generated tables, and the sources of
{", ".join(record["dependencies"])}. This card: `python -m reference.write_card`.
"""


def main(
    trained: Path = typer.Option(Path("build/reference-target"), help="folder that train_target wrote"),
    out: Path = typer.Option(Path("reference/target"), help="folder of the shipped checkpoint"),
    prompts: Path = typer.Option(Path("reference/prompts/heldout.jsonl"), help="held-out prompts"),
    max_tokens: int = typer.Option(96, help="length of the greedy continuations"),
) -> None:
    """Copy the trained checkpoint to its place, evaluate it and write its card."""
    shutil.copytree(trained / "target", out, dirs_exist_ok=True)
    forget_the_machine(out)
    model, tokenizer = load_target(out)
    chosen = read_prompts(prompts)
    texts = greedy(out, chosen, max_tokens, trained / "engine.log")
    outputs = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    looping = {
        kind: float(np.mean([loops(o) for o, p in zip(outputs, chosen, strict=True) if kind in ("all", p.kind)]))
        for kind in ("code", "chat", "all")
    }
    files = collect()
    record = {
        "held_out": held_out_losses(model, tokenizer, files), "looping": looping, "max_tokens": max_tokens,
        "versions": provenance.versions(), "hardware": provenance.hardware(), "sha256": checkpoint_hash(out),
        "dependencies": sorted({file.name.split("/")[0] for file in files if not file.name.startswith("stdlib/")}),
    }  # fmt: skip
    legs = json.loads((trained / "target" / "training.json").read_text(encoding="utf-8"))["legs"]
    write_text(out / "training.json", json.dumps({"legs": legs, "evaluation": record}) + "\n")
    write_text(out / "README.md", card(record, legs))
    shutil.copyfile(trained / "files.json", out / "files.json")
    print(json.dumps({"held_out": record["held_out"], "looping": looping}))


if __name__ == "__main__":
    typer.run(main)
