"""Self-distilled data in direct mode: the target answers the training prompts, as it will be served.

The answers are the target's own (arXiv 2410.09982 calls the idea self-data distillation; the draft of a target wants
its answers to the plain prompt, without the reference answer in sight). One JSONL line an answer, appended as answers
arrive, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from drafts.client import Answer, Sampling, ask_all
from drafts.prompts import Prompt, prompts_hash, read_prompts
from pruning.checkpoint import load_target
from server.engine import EngineSettings, LocalEngine
from stages.errors import InputError, StorageError
from stages.folders import publish, storage_errors
from stages.hashing import checkpoint_hash, file_hash
from stages.progress import Advance, log, progress
from stages.provenance import Run, up_to_date
from stages.settings import Settings

DATA = "data.jsonl"
PREFILL_TOKENS = 16384
"""Tokens of prompts the engine reads in one step: throughput matters here, not the time to a first token."""


class DistillSettings(Settings):
    """How the target answers the training prompts.

    Attributes:
        temperatures: prompt i is answered at ``temperatures[i % len]``; use what will be served.
        backend: ``vllm`` starts the engine here; ``transformers`` generates in this process; ``url`` asks a server.
        url: base address of an OpenAI-compatible server with the target, for ``backend: url``.
        model: the name that server gives the target.
        concurrency: requests in flight.
    """

    max_tokens: int = Field(default=128, ge=1)
    temperatures: tuple[float, ...] = Field(default=(0.0, 1.0), min_length=1)
    seed: int = 0
    max_prompts: int | None = Field(default=None, ge=1)
    backend: Literal["vllm", "transformers", "url"] = "vllm"
    url: str | None = None
    model: str = "target"
    concurrency: int = Field(default=32, ge=1)
    max_model_len: int = Field(default=512, ge=16)


def record_of(prompt: Prompt, answer: str, finish_reason: str | None, temperature: float, seed: int) -> dict[str, Any]:
    """One line of the data file."""
    return {
        "id": prompt.id, "kind": prompt.kind, "source": prompt.source, "temperature": temperature, "seed": seed,
        "finish_reason": finish_reason, **prompt.request()[1], "answer": answer,
    }  # fmt: skip


def read_data(path: Path) -> list[dict[str, Any]]:
    """Reads a data file; a half-written last line (an interrupted run) is left out."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if line and not line.endswith("}"):
                continue
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); remove the line or the file") from error
    return records


class Writer:
    """Appends records to the data file, each line flushed."""

    def __init__(self, path: Path, done: Sequence[dict[str, Any]]):
        with storage_errors(path):
            path.write_text("".join(json.dumps(record) + "\n" for record in done), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        self._path = path

    def write(self, record: dict[str, Any]) -> None:
        """Writes one line; StorageError when the disk is full."""
        with storage_errors(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file; what was written stays for the next run."""
        self._file.close()


@contextmanager
def target_server(target: Path, settings: DistillSettings, log_file: Path) -> Iterator[tuple[str, str]]:
    """Gives (base address, model name) of a server with the target: one started here, or the one named."""
    if settings.backend == "url":
        if not settings.url:
            raise InputError("distill: backend 'url' needs 'url', the base address of an OpenAI-compatible server")
        yield settings.url.rstrip("/").removesuffix("/v1"), settings.model
        return
    engine = EngineSettings(
        model=target, served_model_name=settings.model, max_model_len=settings.max_model_len,
        log_file=log_file, max_num_seqs=settings.concurrency,
        extra_args=("--max-num-batched-tokens", str(PREFILL_TOKENS)),
    )  # fmt: skip
    with LocalEngine(engine) as running:
        yield running.url, settings.model


def _groups(
    prompts: Sequence[Prompt], settings: DistillSettings, done: set[str]
) -> Iterator[tuple[float, list[Prompt]]]:
    """The prompts still to be answered, by temperature."""
    count = len(settings.temperatures)
    for index, temperature in enumerate(settings.temperatures):
        todo = [prompt for prompt in prompts[index::count] if prompt.id not in done]
        if todo:
            yield temperature, todo


def _from_server(
    url: str,
    model: str,
    groups: Iterator[tuple[float, list[Prompt]]],
    settings: DistillSettings,
    writer: Writer,
    advance: Advance,
) -> None:
    """Asks a server; writes every answer as it comes."""
    tokens = 0
    for temperature, todo in groups:
        sampling = Sampling(settings.max_tokens, temperature, settings.seed)

        def keep(index: int, answer: Answer, todo: list[Prompt] = todo, temperature: float = temperature) -> None:
            nonlocal tokens
            tokens += answer.completion_tokens
            writer.write(record_of(todo[index], answer.text, answer.finish_reason, temperature, settings.seed + index))
            advance(1, note=f"{tokens:,} tokens")

        asyncio.run(ask_all(url, model, todo, sampling, settings.concurrency, keep))


def _from_transformers(
    target: Path,
    groups: Iterator[tuple[float, list[Prompt]]],
    settings: DistillSettings,
    writer: Writer,
    advance: Advance,
) -> None:
    """Generates in this process, in batches of ``concurrency`` prompts padded on the left."""
    import torch

    model, tokenizer = load_target(target)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for temperature, todo in groups:
        for start in range(0, len(todo), settings.concurrency):
            batch = todo[start : start + settings.concurrency]
            texts = [rendered(prompt, tokenizer) for prompt in batch]
            inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
            torch.manual_seed(settings.seed + start)
            options = (
                {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
            )
            out = model.generate(
                **inputs, max_new_tokens=settings.max_tokens, pad_token_id=tokenizer.pad_token_id, **options
            )
            for prompt, row in zip(batch, out[:, inputs["input_ids"].shape[1] :], strict=True):
                ended = tokenizer.eos_token_id in row.tolist()
                text = tokenizer.decode(row, skip_special_tokens=True)
                writer.write(record_of(prompt, text, "stop" if ended else "length", temperature, settings.seed + start))
            advance(len(batch))


def rendered(prompt: Prompt, tokenizer: Any) -> str:
    """The text that the model sees for a prompt (chat messages through the chat template)."""
    if prompt.prompt is not None:
        return prompt.prompt
    if not tokenizer.chat_template:
        raise InputError(f"prompt {prompt.id} is a chat, but the target's tokenizer has no chat template")
    messages = [message.model_dump() for message in prompt.messages or ()]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def distill(target: Path, prompts_file: Path, out: Path, settings: DistillSettings) -> None:
    """Writes ``out/data.jsonl``: the target's own answers to the prompts.

    Run again after an interruption, it asks only what is not answered yet; a partial file made with other settings
    or by another target is discarded.
    """
    prompts = read_prompts(prompts_file)[: settings.max_prompts]
    inputs = {"target": checkpoint_hash(target), "prompts": prompts_hash(prompts)}
    run = Run("distill", settings.model_dump(mode="json"), inputs, settings.seed)
    if up_to_date(run, out):
        return
    with publish(out, keep_partial=True) as folder:
        done = read_data(folder / DATA) if run.is_current(folder) else []
        run.write(folder)
        writer = Writer(folder / DATA, done)
        groups = _groups(prompts, settings, {record["id"] for record in done})
        try:
            with progress("answers of the target", len(prompts), "prompts", done=len(done)) as advance:
                if settings.backend == "transformers":
                    _from_transformers(target, groups, settings, writer, advance)
                else:
                    with target_server(target, settings, folder / "engine.log") as (url, model):
                        _from_server(url, model, groups, settings, writer, advance)
        finally:
            writer.close()
        if not read_data(folder / DATA):
            raise StorageError(f"{folder / DATA}: no answers were written")
        run.write(folder, data_sha256=file_hash(folder / DATA), num_records=len(prompts))
    log(f"{out}: {len(prompts)} answers")
