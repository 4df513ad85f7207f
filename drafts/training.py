"""Training of a pruned model on its target's answers: student, losses, budget, and the place in the data."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor, nn

from drafts.examples import Batch, Example, batches
from drafts.lora import LoraRanks, add_lora, importance_of, layer_ranks
from drafts.losses import cross_entropy, forward_kl, negative_log_overlap, overlap, reverse_kl
from drafts.muon import Float32Muon
from drafts.parallel import (
    CONFIG_KEY,
    MaskedBatch,
    additive,
    expected_length,
    mask_token,
    reached,
    refuse_windows,
    with_masks,
)
from drafts.processes import agreed, own_gpus, own_part, share_of
from drafts.teacher import Teacher, decoder_and_head
from pruning.checkpoint import load_target, quickly_computed
from pruning.plan import load_plan
from stages.errors import InputError
from stages.folders import storage_errors
from stages.interruption import interrupted_between_steps
from stages.processor import multiplies_bfloat16
from stages.progress import log, progress
from stages.settings import MixedPrecision, Settings

CHECKPOINT = "training.pt"
"""In a checkpoint: weights of the student, and what its optimisers remember."""


class RecoverSettings(Settings):
    """How the pruned model is trained.

    Attributes:
        kl_weight: weight of KL(target || draft) on the target's logits.
        ce_weight: weight of cross-entropy on the target's tokens.
        reverse_kl_weight: weight of KL(draft || target).
        overlap_weight: weight of -log of the chance that a draft token is accepted.
        start: a draft of the same plan to begin with instead of the kept layers, for another round of training.
        from_scratch: train new weights of the pruned model's shape instead of the kept layers: an unpruned sibling, to
            compare with.
        prompt_weight: weight of prompt positions in the loss (answers count 1); 0 leaves them out.
        tokens: judged positions to train on, over all epochs; masks of ``parallel_tokens`` count.
        max_seconds: end earlier when this much time has passed; the learning rate follows whichever is nearer.
        parallel_tokens: train the draft to propose this many tokens in one pass too, from mask tokens (PARD); 0 does not.
        parallel_keep: share of the mask positions of one depth that the next depth keeps (conditional drop).
        parallel_weight: weight of a mask position's loss: ``reach``, the chance that verification gets that far, or ``even``.
        method: ``full`` trains all weights, ``lora`` low-rank matrices of rank ``lora_rank`` that are merged at the end.
        lora_ranks: ``uniform``, or by the importance that CFSP gave the layers: ``important_first`` gives important layers more,
            ``pruned_first`` those that lost most; the mean rank is ``lora_rank``.
        mixed_precision: ``auto`` is bf16 on GPUs and on processors that have products of bfloat16.
        teacher_cache_gib: memory for the target's final hidden states.
        check_share: share of the prompts kept out of training to report overlap and agreement on.
    """

    kl_weight: float = Field(default=1.0, ge=0)
    ce_weight: float = Field(default=0.0, ge=0)
    reverse_kl_weight: float = Field(default=0.0, ge=0)
    overlap_weight: float = Field(default=0.0, ge=0)
    start: Path | None = None
    from_scratch: bool = False
    prompt_weight: float = Field(default=0.5, ge=0)
    tokens: int = Field(default=6_000_000, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    parallel_tokens: int = Field(default=0, ge=0)
    parallel_keep: float = Field(default=0.7, gt=0, le=1)
    parallel_weight: Literal["reach", "even"] = "reach"
    method: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    lora_ranks: LoraRanks = "uniform"
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = Field(default=0.01, gt=0)
    adam_learning_rate: float = Field(default=0.002, gt=0)
    warmup_share: float = Field(default=0.02, ge=0, lt=1)
    batch_tokens: int = Field(default=8192, ge=64)
    max_length: int = Field(default=512, ge=16)
    seed: int = 0
    mixed_precision: MixedPrecision = "auto"
    checkpoint_every_s: float = Field(default=120.0, gt=0)
    teacher_cache_gib: float = Field(default=2.0, ge=0)
    check_share: float = Field(default=0.03, gt=0, lt=0.5)

    @model_validator(mode="after")
    def _one_beginning(self) -> Self:
        """Refuses two places to begin at."""
        if self.start is not None and self.from_scratch:
            raise ValueError("start and from_scratch exclude each other: give one of them")
        return self

    @model_validator(mode="after")
    def _ranks_are_of_lora(self) -> Self:
        """Refuses ranks where nothing has one."""
        if self.lora_ranks != "uniform" and self.method != "lora":
            raise ValueError(f"lora_ranks {self.lora_ranks!r} needs method lora, given method {self.method!r}")
        return self

    @model_validator(mode="after")
    def _parallel_makes_sense(self) -> Self:
        """Refuses masks that could not be used or weighted."""
        if self.parallel_tokens == 1:
            raise ValueError("parallel_tokens is 1, which is ordinary drafting; give 2 or more, or 0 for none")
        if self.parallel_tokens and self.parallel_weight == "reach" and not self.judges_by_logits:
            raise ValueError(
                "parallel_weight reach needs the target's logits; give kl_weight, reverse_kl_weight or overlap_weight, "
                "or set parallel_weight to even"
            )
        return self

    @property
    def judges_by_logits(self) -> bool:
        """Whether a loss needs the target's logits."""
        return self.kl_weight + self.reverse_kl_weight + self.overlap_weight > 0


@dataclass
class Position:
    """Where training stands; saved with every checkpoint."""

    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Student(nn.Module):
    """The pruned model behind one forward that gives logits at judged positions only (several processes wrap this)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Logits [N, V] of a batch's judged positions."""
        decoder, head = decoder_and_head(self.model)
        if not isinstance(batch, MaskedBatch):
            hidden = decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            return head(hidden[batch.rows_N, batch.columns_N])
        eager = decoder.config._attn_implementation == "eager"
        visible = additive(batch.visible_B1XX) if eager else batch.visible_B1XX
        hidden = decoder(
            input_ids=batch.inputs_BX, position_ids=batch.positions_BX, attention_mask=visible, use_cache=False
        ).last_hidden_state
        return head(hidden[batch.rows_N, batch.places_P])


FIRST_FACTOR = 0.05
"""The least share of the learning rate in the warm-up: at a rate of zero the first step would be lost."""


def learning_rate_factor(done: float, warmup: float) -> float:
    """Linear warm-up from ``FIRST_FACTOR`` over ``warmup`` of the run, then linear decay to zero; ``done`` in [0, 1]."""
    if done < warmup:
        return max(done / warmup, FIRST_FACTOR)
    return max((1 - done) / (1 - warmup), 0.0)


def precision_of(asked: MixedPrecision) -> str:
    """bf16 or no: ``auto`` is bf16 on GPUs and on processors that have products of bfloat16."""
    if asked != "auto":
        return asked
    return "bf16" if torch.cuda.is_available() or multiplies_bfloat16() else "no"


def make_optimizers(model: nn.Module, settings: RecoverSettings) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside the layers and AdamW for the rest, or AdamW for all."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    inner = [p for name, p in trained if p.ndim == 2 and "layers." in name and "lora" not in name]
    if settings.optimizer == "adamw" or not inner:
        return [torch.optim.AdamW([p for _, p in trained], lr=settings.adam_learning_rate, weight_decay=0.0)]
    chosen = {id(p) for p in inner}
    muon = torch.optim.Muon if multiplies_bfloat16() or inner[0].is_cuda else Float32Muon
    rest = [p for _, p in trained if id(p) not in chosen]
    return [
        muon(inner, lr=settings.learning_rate, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=settings.adam_learning_rate, weight_decay=0.0),
    ]


@torch.no_grad()
def mean_embedding(model: Any, token: int) -> None:
    """Gives a token that has had no meaning the mean of all embeddings to begin with."""
    weight = model.get_input_embeddings().weight
    weight[token] = weight.mean(0)


def loss_of(student_NV: Tensor, teacher_NV: Tensor | None, batch: Batch, settings: RecoverSettings) -> Tensor:
    """The weighted sum of the chosen losses on one batch."""
    loss = student_NV.new_zeros((), dtype=torch.float32)
    if settings.ce_weight > 0:
        loss = loss + settings.ce_weight * cross_entropy(student_NV, batch.labels_N, batch.weights_N)
    if teacher_NV is None:
        return loss
    for weight, of in (
        (settings.kl_weight, forward_kl),
        (settings.reverse_kl_weight, reverse_kl),
        (settings.overlap_weight, negative_log_overlap),
    ):
        if weight > 0:
            loss = loss + weight * of(student_NV, teacher_NV, batch.weights_N)
    return loss


class Trainer:
    """One recovery: student, teacher, optimisers and the position in the data."""

    def __init__(self, target: Path, pruned: Path, folder: Path, settings: RecoverSettings):
        self.settings, self.folder = settings, folder
        precision = precision_of(settings.mixed_precision)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        torch.manual_seed(settings.seed)
        model, self.tokenizer = load_target(settings.start or pruned, dtype="float32")
        if settings.from_scratch:
            model = type(model)(model.config)
        if self.accelerator.device.type == "cpu":
            model.set_attn_implementation("eager")  # the fused kernel's backward is the slower one there
        self.mask_token: int | None = None
        if settings.parallel_tokens:
            refuse_windows(model.config, settings.max_length + settings.parallel_tokens)
            self.mask_token = mask_token(model.config, self.tokenizer)
            if not hasattr(model.config, CONFIG_KEY):
                mean_embedding(model, self.mask_token)
        if settings.method == "lora":
            ranks = layer_ranks(settings.lora_rank, settings.lora_ranks, importance_of(load_plan(pruned)), str(pruned))
            model = add_lora(model, settings.lora_rank, self.mask_token, ranks)
        self.needs_teacher = settings.judges_by_logits
        teacher, _ = load_target(target, device="auto", gpus=own_gpus())  # over all of them where there are several
        self.stored_dtype = teacher.dtype
        self.teacher_model = quickly_computed(teacher)
        student = Student(model)
        prepared = self.accelerator.prepare(student, *make_optimizers(student, settings))
        self.student, self.optimizers = prepared[0], list(prepared[1:])
        self.base_rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.position = Position()
        self.losses: list[tuple[int, float]] = []

    def restore(self) -> None:
        """Continues from the last checkpoint, if there is one.

        Raises:
            InputError: it cannot be read.
        """
        place = self.folder / CHECKPOINT
        if not place.is_file():
            return
        try:
            found = torch.load(place, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle raises whatever a damaged file makes it
            raise InputError(
                f"{place}: the checkpoint of an interrupted recovery cannot be read; delete it to begin anew"
            ) from error
        self.accelerator.unwrap_model(self.student).load_state_dict(found["student"])
        for optimizer, its in zip(self.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        self.losses, self.position = found["losses"], Position(**found["position"])
        log(f"recovery resumes at {self.position.tokens:,} tokens")

    def save(self) -> None:
        """Writes a checkpoint beside the last one, then takes its place; any number of processes can go on from it.

        The first process does it for all: after a step they have the same weights and moments.
        """
        if not self.accelerator.is_main_process:
            return
        fresh = self.folder / f".{CHECKPOINT}.partial"
        state = {
            "student": self.accelerator.unwrap_model(self.student).state_dict(),
            "optimizers": [one.state_dict() for one in self.optimizers],
            "losses": self.losses, "position": asdict(self.position),
        }  # fmt: skip
        with storage_errors(self.folder):
            torch.save(state, fresh)
            fresh.replace(self.folder / CHECKPOINT)

    def done(self) -> float:
        """Share of the budget used, in tokens or seconds, whichever is further."""
        by_tokens = self.position.tokens / self.settings.tokens
        by_time = self.position.seconds / self.settings.max_seconds if self.settings.max_seconds else 0.0
        return min(max(by_tokens, by_time), 1.0)

    def step(self, batch: Batch, teacher: Teacher | None) -> float:
        """One optimiser step on one batch, of which each process takes its part; returns the loss, this process's part of it.

        Raises:
            InputError: the loss is not a number; the last checkpoint is of before.
        """
        own, counts = own_part(batch, self.accelerator)
        moved = own.to(self.accelerator.device)
        factor = learning_rate_factor(self.done(), self.settings.warmup_share)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        with self.accelerator.autocast():
            teacher_NV = teacher.logits(moved) if teacher else None
            student_NV = self.student(moved)
            if isinstance(moved, MaskedBatch) and teacher_NV is not None and self.settings.parallel_weight == "reach":
                reach = reached(overlap(student_NV.detach(), teacher_NV), moved)
                moved = replace(moved, weights_N=moved.weights_N * reach)
            loss = loss_of(student_NV, teacher_NV, moved, self.settings)
        loss = loss * share_of(moved.weights_N.sum() * counts, self.accelerator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise InputError(
                f"the loss is not a number after {self.position.tokens:,} positions; check target and data, or lower learning_rate "
                f"({self.settings.learning_rate:g}) and adam_learning_rate ({self.settings.adam_learning_rate:g})"
            )
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.student.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return value

    @property
    def text_tokens(self) -> int:
        """Tokens of text in a batch, which has masks beside them when the draft learns to propose several at once."""
        settings = self.settings
        if not settings.parallel_tokens:
            return settings.batch_tokens
        return max(64, int(settings.batch_tokens / expected_length(settings.parallel_tokens, settings.parallel_keep)))

    def masked(self, batch: Batch, number: int) -> Batch:
        """The batch with masks, if there are to be any; the same ones for the same place in training."""
        settings = self.settings
        if self.mask_token is None:
            return batch
        draw = random.Random(f"{settings.seed}-{self.position.epoch}-{number}")
        return with_masks(batch, settings.parallel_tokens, settings.parallel_keep, self.mask_token, draw)

    def train(self, examples: Sequence[Example]) -> None:
        """Trains until the budget is used up; checkpoints on the way, at the end, and when it is interrupted.

        Several processes are interrupted in the middle of a step, and then go on from the last checkpoint.
        """
        with interrupted_between_steps(self.accelerator.num_processes == 1) as interrupted:
            self._train(examples, interrupted)
            self.save()

    def _train(self, examples: Sequence[Example], interrupted: Callable[[], bool]) -> None:
        settings, position = self.settings, self.position
        teacher = Teacher(self.teacher_model, int(settings.teacher_cache_gib * 2**30)) if self.needs_teacher else None
        saved, last = position.seconds, time.monotonic()
        with progress("recovery", 100, "%", done=100 * self.done()) as advance:
            while self.done() < 1:
                epoch = batches(examples, self.text_tokens, settings.prompt_weight, settings.seed, position.epoch)
                for number, text in enumerate(epoch):
                    if number < position.batch:
                        continue
                    batch = self.masked(text, number)
                    before = self.done()
                    part = self.step(batch, teacher)
                    now = time.monotonic()
                    loss, position.seconds = agreed((part, position.seconds + now - last), self.accelerator)
                    last = now
                    position.tokens, position.batch = position.tokens + batch.num_tokens, number + 1
                    self.losses.append((position.tokens, round(loss, 4)))
                    advance(100 * (self.done() - before), note=f"loss {loss:.3f}, {position.tokens:,} positions")
                    if interrupted():
                        self.save()
                        raise KeyboardInterrupt
                    if position.seconds - saved > settings.checkpoint_every_s:
                        self.save()
                        saved = position.seconds
                    if self.done() >= 1:
                        return
                position.epoch, position.batch = position.epoch + 1, 0

    def finished(self) -> Any:
        """The trained model, LoRA merged, without wrappers."""
        model = self.accelerator.unwrap_model(self.student).model
        return model.merge_and_unload() if self.settings.method == "lora" else model
