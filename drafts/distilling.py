"""Self-distilled data: the target answers the training prompts. One JSONL line an answer, appended as answers arrive, so that
an interrupted run goes on where it stopped.

Three modes (arXiv 2410.09982 calls the idea self-data distillation), which a mixture gives shares of the prompts:

- ``direct``: the target's own answer to the prompt alone, sampled as it will be served. What a draft wants.
- ``rewrite``: the target says the prompt's reference answer in its own words (``rewriting``).
- ``reference``: the reference answer as it is: plain supervised fine-tuning, the baseline.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, cycle
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from drafts.client import Answer, Sampling, ask_all
from drafts.encoding import fitting, prompt_ids
from drafts.prompts import Prompt, draw, prompts_hash, read_prompts
from drafts.rewriting import guided, select
from pruning.checkpoint import load_target, load_tokenizer, quickly_computed
from server.engine import EngineSettings, LocalEngine
from server.launching import launch_single
from stages.errors import InputError
from stages.folders import publish, storage_errors, write_text
from stages.hashing import checkpoint_hash, file_hash
from stages.progress import Advance, log, progress
from stages.provenance import Run, can_resume, up_to_date
from stages.settings import Settings

DATA = "data.jsonl"
Mode = Literal["direct", "rewrite", "reference"]
HARMLESS = ("concurrency", "url")
"""Settings that may change before an interrupted run goes on: the same answers, faster or from where the server is now."""
PREFILL_TOKENS = 16384
"""Tokens of prompts the engine reads in one step: throughput matters here, not the time to a first token."""


class DistillSettings(Settings):
    """How the target answers the training prompts.

    Attributes:
        temperatures: prompt i of its kind is answered at ``temperatures[i % len]``; use what will be served.
        kinds: only prompts of these kinds; all when not given.
        max_prompts: a seeded sample of the file; all of it when not given.
        backend: ``vllm`` starts the engine here; ``transformers`` generates in this process; ``url`` asks a server.
        url: base address of an OpenAI-compatible server with the target, for ``backend: url``.
        model: the name that server gives the target.
        concurrency: requests in flight.
        answerer: a draft that answers in the target's place: what it would say itself, to be trained on with the target's logits
            (on-policy, arXiv 2306.13649).
        engine_args: further arguments of the engine that ``vllm`` starts (``--tensor-parallel-size 4``); an unfinished
            distillation may go on with others, so they must not change what is answered (``--quantization`` would).
        mixture: share of the prompts by mode; shares count relative to their sum. Modes other than ``direct`` need
            prompts with a ``reference``.
    """

    max_tokens: int = Field(default=128, ge=1)
    temperatures: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.0, 1.0), min_length=1)
    seed: int = 0
    kinds: tuple[str, ...] | None = Field(default=None, min_length=1)
    max_prompts: int | None = Field(default=None, ge=1)
    backend: Literal["vllm", "transformers", "url"] = "vllm"
    url: str | None = None
    model: str = "target"
    concurrency: int = Field(default=128, ge=1)
    max_model_len: int = Field(default=512, ge=16)
    answerer: Path | None = None
    engine_args: tuple[str, ...] = Field(default=(), exclude=True)
    mixture: dict[Mode, Annotated[float, Field(gt=0)]] = Field(default={"direct": 1.0}, min_length=1)

    @model_validator(mode="after")
    def _answerer_is_started_here(self) -> Self:
        """Refuses an answerer beside a server, which answers with whatever it has."""
        if self.answerer is not None and self.backend == "url":
            raise ValueError("answerer: a draft is started here; use backend 'vllm' or 'transformers' with it")
        return self


@dataclass(frozen=True)
class Asked:
    """One prompt to be answered, with its place in the list, the temperature and the seed that belong to that place.

    Attributes:
        mode: direct or rewrite; references are not asked for.
    """

    place: int
    prompt: Prompt
    temperature: float
    seed: int
    mode: Mode = "direct"

    @property
    def shown(self) -> Prompt:
        """What the target gets to see."""
        return (guided(self.prompt) if self.mode == "rewrite" else None) or self.prompt


def record_of(asked: Asked, answer: str, finish_reason: str | None, target_hash: str) -> dict[str, Any]:
    """One line of the data file; a rewrite that does not pass gives way to the reference, and ``selected`` says why."""
    prompt, selected = asked.prompt, str(asked.mode)
    if asked.mode == "rewrite" and prompt.reference is not None:
        answer, selected = select(answer, prompt.reference)
        finish_reason = finish_reason if selected == "rewrite" else whole(prompt)
    return {
        "place": asked.place, "id": prompt.id, "kind": prompt.kind, "source": prompt.source,
        "mode": asked.mode, "selected": selected,
        "target_sha256": target_hash, "temperature": asked.temperature, "seed": asked.seed,
        "finish_reason": finish_reason, **prompt.request()[1], "answer": answer,
    }  # fmt: skip


def whole(prompt: Prompt) -> str:
    """How a reference ends: a message ends where it ends, text that was continued would have gone on."""
    return "stop" if prompt.messages is not None else "length"


def mode_of(prompt: Prompt, mixture: dict[Mode, float]) -> Mode:
    """The mode of a prompt, by the hash of its id: the same in every run and for every number of prompts.

    Text to be continued has no instruction to answer anew, so its rewrite is its reference.
    """
    drawn = int(prompt.id[:8], 16) / 2**32 * sum(mixture.values())
    chosen = next(mode for mode, end in zip(mixture, accumulate(mixture.values()), strict=True) if drawn < end)
    return "reference" if chosen == "rewrite" and prompt.messages is None else chosen


def read_data(path: Path) -> list[dict[str, Any]]:
    """Reads a data file; a half-written last line (an interrupted run) is left out."""
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if not line.endswith("}"):
                continue
            raise InputError(f"{path}, line {number}: not valid JSON ({error}); remove the line or the file") from error
    return records


def read_answers(data: Path, target_hash: str) -> list[dict[str, Any]]:
    """The records that ``distill`` wrote.

    Raises:
        InputError: there are none, or another target's answers are among them.
    """
    records = read_data(data / DATA)
    if not records:
        raise InputError(f"{data / DATA}: no answers there; run 'understudy distill' first")
    for number, record in enumerate(records, 1):
        answered_by = record.get("target_sha256", target_hash)
        if answered_by != target_hash:
            raise InputError(
                f"{data / DATA}, line {number}: answered by the target {answered_by[:12]}, not by {target_hash[:12]}; "
                "run 'understudy distill' with this target"
            )
    return records


class Writer:
    """Appends answers to the data file, each line flushed."""

    def __init__(self, path: Path, done: Sequence[dict[str, Any]], target_hash: str, answerer: str | None = None):
        write_text(path, "".join(json.dumps(record) + "\n" for record in done))
        with storage_errors(path):
            self._file = path.open("a", encoding="utf-8")
        self._path, self._target_hash = path, target_hash
        self._more = {} if answerer is None else {"answerer_sha256": answerer}

    def write(self, asked: Asked, answer: str, finish_reason: str | None) -> None:
        """Writes one line; StorageError when the disk is full."""
        record = {**record_of(asked, answer, finish_reason, self._target_hash), **self._more}
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
        log_file=log_file, max_num_seqs=settings.concurrency, spare_core=False,
        extra_args=("--max-num-batched-tokens", str(PREFILL_TOKENS), *settings.engine_args),
    )  # fmt: skip
    with LocalEngine(engine, launch=launch_single()) as running:
        yield running.url, settings.model


def modes_of(prompts: Sequence[Prompt], settings: DistillSettings, tokenizer: Any) -> list[Mode]:
    """The mode of every prompt: a rewrite for which prompt, reference and answer are too long together is the reference."""
    modes = [mode_of(prompt, settings.mixture) for prompt in prompts]
    room = settings.max_model_len - settings.max_tokens
    long = {
        place
        for place, mode in enumerate(modes)
        if mode == "rewrite" and len(prompt_ids(guided(prompts[place]) or prompts[place], tokenizer)) > room
    }
    if long:
        log(
            f"{len(long)} prompts leave no room for their reference to be shown: it is taken as it is; raise max_model_len"
        )
    return ["reference" if place in long else mode for place, mode in enumerate(modes)]


def to_ask(
    prompts: Sequence[Prompt], settings: DistillSettings, done: set[int], modes: Sequence[Mode] | None = None
) -> list[list[Asked]]:
    """What is still to be answered, one list for each temperature; a resumed run asks what the first would have.

    Args:
        done: places of prompts that are answered.
        modes: of the prompts; the mixture's where not given.
    """
    modes = [mode_of(prompt, settings.mixture) for prompt in prompts] if modes is None else modes
    of_kind: defaultdict[str, Iterator[float]] = defaultdict(lambda: cycle(settings.temperatures))
    todo = [
        Asked(place, prompt, temperature, settings.seed + place, mode)
        for place, prompt, temperature in [(i, p, next(of_kind[p.kind])) for i, p in enumerate(prompts)]
        if place not in done and (mode := modes[place]) != "reference"
    ]
    return [group for t in dict.fromkeys(settings.temperatures) if (group := [a for a in todo if a.temperature == t])]


def _from_server(
    url: str, model: str, groups: Sequence[list[Asked]], settings: DistillSettings, writer: Writer, advance: Advance
) -> None:
    """Asks a server; writes every answer as it comes."""
    tokens = 0
    for group in groups:
        sampling = Sampling(settings.max_tokens, group[0].temperature, stream=False)

        def keep(index: int, answer: Answer, group: list[Asked] = group) -> None:
            nonlocal tokens
            tokens += answer.completion_tokens
            writer.write(group[index], answer.text, answer.finish_reason)
            advance(1, note=f"{tokens:,} tokens")

        prompts, seeds = [asked.shown for asked in group], [asked.seed for asked in group]
        asyncio.run(ask_all(url, model, prompts, sampling, settings.concurrency, keep, seeds))


def _from_transformers(
    asked_model: Path, groups: Sequence[list[Asked]], settings: DistillSettings, writer: Writer, advance: Advance
) -> None:
    """Generates in this process, on a GPU if there is one, in batches of ``concurrency`` padded on the left."""
    import torch

    model, tokenizer = load_target(asked_model)
    model = quickly_computed(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for group in groups:
        temperature = group[0].temperature
        sampled = {"do_sample": True, "temperature": temperature, "top_k": 0}
        options = sampled if temperature > 0 else {"do_sample": False}
        for start in range(0, len(group), settings.concurrency):
            batch = group[start : start + settings.concurrency]
            rows = {"input_ids": [prompt_ids(asked.shown, tokenizer) for asked in batch]}
            inputs = tokenizer.pad(rows, return_tensors="pt").to(model.device)
            torch.manual_seed(batch[0].seed)
            out = model.generate(
                **inputs, max_new_tokens=settings.max_tokens, pad_token_id=tokenizer.pad_token_id, **options
            )
            for asked, row in zip(batch, out[:, inputs["input_ids"].shape[1] :], strict=True):
                ended = tokenizer.eos_token_id in row.tolist()
                writer.write(asked, tokenizer.decode(row, skip_special_tokens=True), "stop" if ended else "length")
            advance(len(batch))


def write_references(
    prompts: Sequence[Prompt], modes: Sequence[Mode], settings: DistillSettings, done: set[int], writer: Writer
) -> int:
    """Writes the answers that nobody is asked for; how many.

    Raises:
        InputError: a prompt has no reference and the mixture wants one.
    """
    written = 0
    for place, (prompt, mode) in enumerate(zip(prompts, modes, strict=True)):
        if mode == "direct":
            continue
        if prompt.reference is None:
            raise InputError(
                f'distill: mode {mode!r} needs a "reference" in every prompt it is given, and prompt {prompt.id} '
                f"({prompt.source or prompt.kind}) has none; add references or use mode 'direct' alone"
            )
        if mode == "reference" and place not in done:
            writer.write(Asked(place, prompt, 0.0, settings.seed + place, mode), prompt.reference, whole(prompt))
            written += 1
    return written


def of_kinds(prompts: list[Prompt], kinds: tuple[str, ...] | None, source: Path) -> list[Prompt]:
    """The prompts of these kinds; InputError for a kind that no prompt has."""
    known = {prompt.kind for prompt in prompts}
    for kind in kinds or ():
        if kind not in known:
            raise InputError(f"{source}: has no prompt of kind {kind!r}; its kinds are {', '.join(sorted(known))}")
    return [prompt for prompt in prompts if kinds is None or prompt.kind in kinds]


def distill(target: Path, prompts_file: Path, out: Path, settings: DistillSettings) -> None:
    """Writes ``out/data.jsonl``: an answer to each prompt, the target's own unless the mixture says otherwise.

    Run again after an interruption, it asks only what is not answered yet; a partial file made with other settings
    or by another target is discarded, and what changed is said.
    """
    found = of_kinds(read_prompts(prompts_file), settings.kinds, prompts_file)
    tokenizer = load_tokenizer(target)
    everything = fitting(found, tokenizer, settings.max_model_len, settings.max_tokens)
    prompts = draw(everything, settings.max_prompts, settings.seed)
    target_hash = checkpoint_hash(target)
    inputs = {"target": target_hash, "prompts": prompts_hash(prompts)}
    answerer = checkpoint_hash(settings.answerer) if settings.answerer else None
    if answerer:
        inputs["answerer"] = answerer
    run = Run("distill", settings.model_dump(mode="json"), inputs, settings.seed, HARMLESS)
    if up_to_date(run, out):
        return
    with publish(out, keep_partial=True, stage=run.stage) as folder:
        done = read_data(folder / DATA) if can_resume(run, folder) else []
        run.write(folder)
        modes = modes_of(prompts, settings, tokenizer)
        writer = Writer(folder / DATA, done, target_hash, answerer)
        asked = settings.answerer or target
        groups = to_ask(prompts, settings, {record["place"] for record in done}, modes)
        try:
            given = write_references(prompts, modes, settings, {record["place"] for record in done}, writer)
            with progress(
                f"answers of the {'draft' if answerer else 'target'}", len(prompts), "prompts", done=len(done) + given
            ) as advance:
                if not groups:
                    pass
                elif settings.backend == "transformers":
                    _from_transformers(asked, groups, settings, writer, advance)
                else:
                    with target_server(asked, settings, folder / "engine.log") as (url, model):
                        _from_server(url, model, groups, settings, writer, advance)
        finally:
            writer.close()
        run.write(folder, data_sha256=file_hash(folder / DATA), num_records=len(prompts))
    log(f"{out}: {len(prompts)} answers{rewritten(out, settings)}")


def rewritten(data: Path, settings: DistillSettings) -> str:
    """What became of rewrites, in words for the log; nothing where none was asked for."""
    if not settings.mixture.get("rewrite"):
        return ""
    records = read_data(data / DATA)
    asked = Counter(record["selected"] for record in records if record["mode"] == "rewrite")
    kept, texts = asked.pop("rewrite", 0), sum(record["mode"] == "reference" for record in records)
    why = f" ({'; '.join(f'{reason}: {number}' for reason, number in asked.most_common())})" if asked else ""
    return (
        f"; {kept} rewrites, {asked.total()} that gave way to their reference{why}, {texts} references (of text to be continued, "
        "or by the mixture)"
    )
