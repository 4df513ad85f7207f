"""Trains the reference target: ``python -m reference.train_target --out build/reference-target``.

A Llama of 24 layers and hidden size 192 with the plain transformers class. Weights live twice: bf16 for the passes
(what is shipped), fp32 for the optimiser. Matrices are optimised with Muon, the rest with AdamW; the learning rate
warms up, stays, and decays linearly to zero. Most steps use windows of 256 tokens, the last ones 512. In the decay phase
some rows of each batch are spans repeated on purpose with the DITTO loss (arXiv 2206.02369, eq. 5), which lowers the probability
of each further repetition: small models loop under greedy decoding, and a looping target flatters every draft.

``--start-from`` trains a finished target further: a new *leg* with its own seed, schedule and fresh optimisers. With
``--looping-outputs`` (from ``reference.looping_outputs``) the repeated spans are the target's own loops. The card lists all legs.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn import functional
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from reference.batches import LoopingOutput, make_batch, read_looping_outputs
from reference.chat_pairs import chat_pairs
from reference.corpus import SourceFile, check_disjoint, collect
from reference.data import Windows, chat_text, encode_documents, train_tokenizer
from reference.target_model import causal_attention, initialise, target_config
from stages.hashing import file_hash


@dataclass(frozen=True)
class TrainingSettings:
    """What decides the trained weights (besides the corpus, whose hashes the card lists)."""

    seed: int = 0
    tokens_short: int = 6_012_928
    tokens_long: int = 819_200
    length_short: int = 256
    length_long: int = 512
    batch_tokens: int = 8192
    warmup_steps: int = 60
    decay_share: float = 0.4
    muon_lr: float = 0.01
    adam_lr: float = 0.003
    weight_decay: float = 0.05
    ditto_share: float = 0.0625
    ditto_weight: float = 0.5
    ditto_lambda: float = 0.5
    shares: tuple[tuple[str, float], ...] = (("chat", 0.3), ("dependencies", 0.2), ("stdlib", 0.5))
    looping_outputs_sha256: str | None = None

    @property
    def steps_short(self) -> int:
        """Optimiser steps with short windows."""
        return self.tokens_short // self.batch_tokens

    @property
    def steps(self) -> int:
        """All optimiser steps."""
        return self.steps_short + self.tokens_long // self.batch_tokens


def target_loss(logits: Tensor, ids: Tensor, labels: Tensor, previous: Tensor, settings: TrainingSettings) -> Tensor:
    """Cross-entropy on ``labels >= 0`` plus the DITTO loss where ``previous >= 0``.

    Args:
        logits: bf16 [B, T, V].
        ids: input tokens, int64 [B, T].
        labels: the token after each input, int64 [B, T]; -100 where it does not count.
        previous: int64 [B, T]; for a position in a repeated span, the position one span earlier in the row, else -1.
    """
    log_probs = torch.log_softmax(logits.float(), -1)
    counts, repeats = labels >= 0, previous >= 0
    targets = torch.where(counts, labels, ids.roll(-1, 1)).clamp_min(0)
    picked = log_probs.gather(-1, targets[..., None])[..., 0]
    cross_entropy = -(picked * counts).sum() / counts.sum()
    chance = picked.exp()
    wanted = settings.ditto_lambda * chance.detach().gather(1, previous.clamp_min(0))
    ditto = -torch.log((1 - (chance - wanted).abs()).clamp_min(1e-6))
    return cross_entropy + settings.ditto_weight * (ditto * repeats).sum() / repeats.sum().clamp_min(1)


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Trapezoid: linear warm-up, constant, linear decay to zero over the last ``decay_share`` of the steps."""
    left = (settings.steps - step) / (settings.decay_share * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, left)


class Master:
    """fp32 copies of the weights with their optimisers; the bf16 model is refreshed from them after each step."""

    def __init__(self, model: LlamaForCausalLM, settings: TrainingSettings):
        self.model, self.settings = model, settings
        self.pairs = [(p, p.detach().float().requires_grad_()) for p in model.parameters()]
        names = [name for name, _ in model.named_parameters()]
        matrices = [m for name, (_, m) in zip(names, self.pairs, strict=True) if m.ndim == 2 and "embed" not in name]
        rest = [m for name, (_, m) in zip(names, self.pairs, strict=True) if m.ndim < 2 or "embed" in name]
        self.optimizers = [
            torch.optim.Muon(matrices, lr=settings.muon_lr, weight_decay=settings.weight_decay),
            torch.optim.AdamW(rest, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def step(self, factor: float) -> float:
        """Applies the gradients of the bf16 model at ``factor`` times the base rates; returns their norm."""
        for parameter, master in self.pairs:
            master.grad = parameter.grad.float()
            parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_([master for _, master in self.pairs], 1.0)
        for optimizer, rate in zip(self.optimizers, (self.settings.muon_lr, self.settings.adam_lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        with torch.no_grad():
            for parameter, master in self.pairs:
                parameter.copy_(master)
        return float(norm)

    def state_dict(self) -> dict[str, Any]:
        """fp32 weights and optimiser states."""
        return {"masters": [m.detach() for _, m in self.pairs], "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        with torch.no_grad():
            for (parameter, master), saved in zip(self.pairs, state["masters"], strict=True):
                master.copy_(saved)
                parameter.copy_(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, documents: list[np.ndarray], num_bytes: int, length: int) -> tuple[float, float]:
    """Validation loss in nats per token and bits per byte over joined documents cut into windows."""
    tokens = np.concatenate(documents).astype(np.int64)
    count = (len(tokens) - 1) // length
    ids = torch.from_numpy(tokens[: count * length]).view(count, length)
    labels = torch.from_numpy(tokens[1 : count * length + 1]).view(count, length)
    total = 0.0
    for start in range(0, count, 16):
        logits = model(input_ids=ids[start : start + 16], use_cache=False).logits.float()
        total += functional.cross_entropy(
            logits.flatten(0, 1), labels[start : start + 16].flatten(), reduction="sum"
        ).item()
    nats = total / (count * length)
    return nats, nats * len(tokens) / num_bytes / math.log(2)


def _documents(
    files: list[SourceFile], split: str, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, list[np.ndarray]], int]:
    """Token arrays of one split by source name, and the number of UTF-8 bytes of its stdlib text."""
    chosen = [file for file in files if file.split == split]
    texts = {
        "stdlib": [file.text for file in chosen if file.name.startswith("stdlib/")],
        "dependencies": [file.text for file in chosen if not file.name.startswith("stdlib/")],
        "chat": [chat_text(chat) for chat in chat_pairs(chosen)],
    }
    num_bytes = sum(len(text.encode()) for text in texts["stdlib"])
    return {name: encode_documents(tokenizer, rows) for name, rows in texts.items() if rows}, num_bytes


@dataclass(frozen=True)
class Corpus:
    """What a run reads: the files, their tokenizer, training and validation tokens by source."""

    files: list[SourceFile]
    tokenizer: PreTrainedTokenizerFast
    training: dict[str, list[np.ndarray]]
    validation: dict[str, list[np.ndarray]]
    validation_bytes: int
    looping: list[LoopingOutput]


def prepare(start_from: Path | None, looping_outputs: Path | None) -> Corpus:
    """Collects and encodes the corpus; the tokenizer is trained, or taken from the target that is trained further."""
    files = collect()
    check_disjoint(files)
    training_files = [file for file in files if file.split == "train"]
    if start_from is None:
        tokenizer = train_tokenizer(training_files, chat_pairs(training_files))
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(start_from)
    training, _ = _documents(files, "train", tokenizer)
    looping = read_looping_outputs(looping_outputs) if looping_outputs else []
    return Corpus(files, tokenizer, training, *_documents(files, "validation", tokenizer), looping)


def build_model(start_from: Path | None, settings: TrainingSettings) -> LlamaForCausalLM:
    """A new bf16 model, or the weights of ``start_from``; both with ``causal_attention``."""
    AttentionInterface.register("causal_plain", causal_attention)
    AttentionMaskInterface.register("causal_plain", lambda *args, **kwargs: None)
    if start_from is not None:
        return LlamaForCausalLM.from_pretrained(start_from, dtype=torch.bfloat16, attn_implementation="causal_plain")
    config = target_config()
    config._attn_implementation = "causal_plain"
    model = LlamaForCausalLM(config)
    initialise(model, settings.seed)
    return model.to(torch.bfloat16)


class Training:
    """One leg: model, optimisers, data stream, log, and how they are saved and taken up again."""

    def __init__(self, out: Path, corpus: Corpus, settings: TrainingSettings, start_from: Path | None):
        self.settings, self.corpus = settings, corpus
        self.model = build_model(start_from, settings)
        self.master = Master(self.model, settings)
        self.windows = Windows(corpus.training, dict(settings.shares), settings.length_short, settings.seed)
        self.step, self.log = 0, list[list[Any]]()
        self.checkpoint = out / "checkpoint.pt"

    def save(self) -> None:
        """Writes the checkpoint, the old one until the new one is whole."""
        state = {"settings": asdict(self.settings), "master": self.master.state_dict(), "windows": self.windows.state,
                 "drawn": self.windows.drawn, "step": self.step, "log": self.log}  # fmt: skip
        torch.save(state, self.checkpoint.with_suffix(".tmp"))
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)

    def resume(self) -> None:
        """Takes up the checkpoint if there is one; SystemExit if it was made with other settings."""
        if not self.checkpoint.exists():
            return
        state = torch.load(self.checkpoint, weights_only=False)
        changed = [key for key, value in asdict(self.settings).items() if state["settings"].get(key) != value]
        if changed:
            raise SystemExit(
                f"{self.checkpoint} was trained with other settings ({', '.join(changed)}): remove it to start anew"
            )
        self.master.load_state_dict(state["master"])
        self.windows.state, self.windows.drawn = state["windows"], state["drawn"]
        self.step, self.log = state["step"], state["log"]

    def advance(self, loss_function: Any) -> float:
        """One optimiser step; returns the loss in nats."""
        settings, step = self.settings, self.step
        self.windows.length = settings.length_short if step < settings.steps_short else settings.length_long
        decaying = step >= settings.steps * (1 - settings.decay_share)
        rows = settings.batch_tokens // self.windows.length
        ditto_rows = round(settings.ditto_share * rows) if decaying else 0
        rng = random.Random(f"ditto-{settings.seed}-{step}")
        batch = make_batch(self.windows, rows, ditto_rows, rng, self.corpus.looping)
        loss = loss_function(self.model(input_ids=batch[0], use_cache=False).logits, *batch, settings)
        loss.backward()
        self.master.step(learning_rate_factor(step, settings))
        self.step += 1
        return loss.item()

    @torch.compiler.disable
    def validate(self) -> None:
        """Logs validation losses."""
        nats, bits = evaluate(self.model, self.corpus.validation["stdlib"], self.corpus.validation_bytes, 256)
        chat_nats, _ = evaluate(self.model, self.corpus.validation["chat"], 1, 256)
        self.log.append([self.step, "validation", nats, bits, chat_nats])
        print(f"validation: {nats:.4f} nats/token, {bits:.4f} bits/byte, chat {chat_nats:.4f}", flush=True)


def train(
    out: Path, settings: TrainingSettings, start_from: Path | None = None, looping_outputs: Path | None = None,
    compile_model: bool = True, save_every_s: float = 300.0,
) -> None:  # fmt: skip
    """Trains (or resumes) into ``out``: checkpoint.pt while it runs, then the Hugging Face folder ``out/target``."""
    if start_from is not None:
        used = [leg["settings"]["seed"] for leg in read_legs(start_from)]
        if settings.seed in used:
            raise SystemExit(
                f"--seed {settings.seed}: used by an earlier leg ({used}); its windows would be seen again"
            )
    out.mkdir(parents=True, exist_ok=True)
    corpus = prepare(start_from, looping_outputs)
    print({name: sum(map(len, rows)) for name, rows in corpus.training.items()}, "training tokens", flush=True)
    training = Training(out, corpus, settings, start_from)
    training.resume()
    loss_function = target_loss
    if compile_model:  # one layer is compiled once and serves all; compiling the whole model takes minutes
        LlamaDecoderLayer.forward = torch.compile(LlamaDecoderLayer.forward, dynamic=False)
        loss_function = torch.compile(target_loss, dynamic=False)
    first, started, last_save = training.step, time.monotonic(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=settings.steps, completed=first)
        while training.step < settings.steps:
            loss = training.advance(loss_function)
            rate = (training.step - first) * settings.batch_tokens / (time.monotonic() - started)
            progress.update(task, advance=1, description=f"loss {loss:.3f} {rate:.0f} tokens/s")
            if training.step % 10 == 0:
                training.log.append([training.step, round(loss, 4)])
                print(f"step {training.step}/{settings.steps} loss {loss:.3f} {rate:.0f} tokens/s", flush=True)
            if training.step % 200 == 0 or training.step == settings.steps:
                training.validate()
            if time.monotonic() - last_save > save_every_s:
                training.save()
                last_save = time.monotonic()
    training.save()
    write_target(out, training, start_from)


def read_legs(target: Path) -> list[dict[str, Any]]:
    """The legs that a finished target was trained in: settings and log of each."""
    legs: list[dict[str, Any]] = json.loads((target / "training.json").read_text(encoding="utf-8"))["legs"]
    return legs


def write_target(out: Path, training: Training, start_from: Path | None) -> None:
    """Writes the model, its tokenizer, the corpus' hashes and the record of all legs."""
    training.model.config._attn_implementation = "sdpa"
    training.model.save_pretrained(out / "target")
    if start_from is None:
        training.corpus.tokenizer.save_pretrained(out / "target")
    else:
        for path in [*start_from.glob("token*"), *start_from.glob("chat_template*")]:
            shutil.copyfile(path, out / "target" / path.name)
    hashes = {file.name: {"split": file.split, "sha256": file.sha256} for file in training.corpus.files}
    (out / "files.json").write_text(json.dumps(hashes, indent=0))
    legs = [{"settings": asdict(training.settings), "log": training.log}]
    if start_from is not None:
        legs = read_legs(start_from) + legs
    (out / "target" / "training.json").write_text(json.dumps({"legs": legs}))


def main(
    out: Path = typer.Option(Path("build/reference-target"), help="folder for checkpoint and result"),
    start_from: Path | None = typer.Option(None, help="folder of a finished target to train further"),
    tokens_short: int = typer.Option(TrainingSettings.tokens_short, help="training tokens in windows of 256"),
    tokens_long: int = typer.Option(TrainingSettings.tokens_long, help="training tokens in windows of 512, at the end"),
    seed: int = typer.Option(0, help="seed of initial weights and data order"),
    muon_lr: float = typer.Option(TrainingSettings.muon_lr, help="highest learning rate of the matrices"),
    adam_lr: float = typer.Option(TrainingSettings.adam_lr, help="highest learning rate of embeddings and norms"),
    decay_share: float = typer.Option(TrainingSettings.decay_share, help="share of the steps in which the rates fall"),
    ditto_share: float = typer.Option(TrainingSettings.ditto_share, help="share of DITTO rows while the rates fall"),
    ditto_lambda: float = typer.Option(
        TrainingSettings.ditto_lambda, help="chance of a repetition over the one before"
    ),
    ditto_weight: float = typer.Option(TrainingSettings.ditto_weight, help="weight of the DITTO loss"),
    warmup_steps: int = typer.Option(TrainingSettings.warmup_steps, help="steps in which the rates rise"),
    looping_outputs: Path | None = typer.Option(None, help="file of reference.looping_outputs for the DITTO rows"),
    compile_model: bool = typer.Option(True, help="torch.compile the layers and the loss (needs a C++ compiler)"),
) -> None:
    """Train the reference target; run the same command again to resume."""
    settings = TrainingSettings(
        seed=seed, tokens_short=tokens_short, tokens_long=tokens_long, muon_lr=muon_lr, adam_lr=adam_lr,
        decay_share=decay_share, ditto_share=ditto_share, ditto_lambda=ditto_lambda, ditto_weight=ditto_weight,
        warmup_steps=warmup_steps, looping_outputs_sha256=file_hash(looping_outputs) if looping_outputs else None,
    )  # fmt: skip
    train(out, settings, start_from, looping_outputs, compile_model)


if __name__ == "__main__":
    typer.run(main)
