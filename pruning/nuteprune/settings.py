"""What can be set about NutePrune. Importing this loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stages.settings import MixedPrecision, Settings

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]

RATE, RATE_EXPONENT = 6490.0, 1.6
"""The multipliers' rate by default is RATE * sparsity^RATE_EXPONENT / (steps of the search); fitted to the reference target."""


class NutePruneSettings(Settings):
    """How masks and low-rank matrices are trained, and in which shape the model is written.

    The paper's recipe for a 7B model: lora_rate 1e-3, mask_rate 0.1, finetune_rate 1e-4. The defaults are for a budget of
    minutes on the reference target.

    Attributes:
        calibration: texts to train on (.jsonl records or plain text), cut into windows of ``sequence_length``.
        sparsity: share of the layers' linear weights to remove.
        teachers: ``numerous``, snapshots of the student at lower sparsity; ``intact``, the target alone.
        snapshot_every: how much sparsity lies between two snapshots.
        teacher_gap: how many snapshots the teacher is behind the student.
        steps: optimiser steps, search and fine-tuning together.
        tokens: end earlier when so many tokens were seen.
        max_seconds: end earlier when so much time has passed; ramp and schedules follow whichever is nearest.
        finetune_share: share of the budget for fine-tuning with frozen masks after the search.
        warmup_share: share of the search in which the aim grows from 0 to ``sparsity``.
        hidden: mask dimensions of the residual stream too.
        neuron_mask: ``gate_and_up`` masks the outputs of both projections, before the activation; ``product`` what
            they make.
        export: ``ragged`` keeps what each layer's masks keep; ``uniform`` gives all layers the same widths, which loads
            everywhere.
        exact: bring the widths to the wanted sparsity before fine-tuning; otherwise they are the masks' own.
        multiple_of: widths of MLPs are multiples of this.
        initial_drop: chance of a unit to be off at the start.
        multiplier_rate: learning rate of the Lagrangian's multipliers; no source gives it. It times the steps of the search decides
            how far they grow. None takes 6,490 sparsity^1.6 over those steps, which brings the reference target's masks to about
            the wanted sparsity within some hundred steps (EXPERIMENTS.md), where differences of hidden states are in the tens;
            where they are larger, give more. A search that falls a little short is better than one that goes too far.
        lora_alpha: LoRA is scaled by ``lora_alpha / lora_rank`` (no source gives it).
        hidden_weight: weight of the layers' summed mean squared differences of hidden states.
        hidden_loss: ``mse``, or ``relative``, each layer's divided by the teacher's mean square.
        kl_weight: weight of T^2 KL(teacher || student).
        temperature: T.
        finetune_loss: ``distill`` from the intact model, or ``text``, cross-entropy on the text (no source says which).
        batch_tokens: padded tokens in a batch; at least one window of ``sequence_length``.
        check_share: share of the text kept out of training to report divergence on.
        dtype: type of the resident base; ``auto`` is the stored one. Not float16, in which gradients of small differences are 0.
        mixed_precision: ``bf16`` multiplies matrices in bfloat16; ``auto`` where the hardware does that itself.
    """

    method: Literal["nuteprune"] = "nuteprune"
    calibration: tuple[Path, ...] = ()
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.25
    teachers: Literal["numerous", "intact"] = "numerous"
    snapshot_every: Annotated[float, Field(gt=0, lt=1)] = 0.01
    teacher_gap: Count = 10
    steps: Annotated[int, Field(ge=2)] = 200
    tokens: Count | None = None
    max_seconds: Annotated[float | None, Field(gt=0)] = None
    finetune_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.6
    hidden: bool = False
    neuron_mask: Literal["gate_and_up", "product"] = "gate_and_up"
    export: Literal["ragged", "uniform"] = "ragged"
    exact: bool = True
    multiple_of: Count = 1
    initial_drop: Annotated[float, Field(gt=0, lt=1)] = 0.01
    mask_rate: Rate = 0.2
    multiplier_rate: Rate | None = None
    lora_rank: Count = 8
    lora_alpha: Rate = 16.0
    lora_rate: Rate = 1e-3
    finetune_rate: Rate = 1e-3
    hidden_weight: Annotated[float, Field(ge=0)] = 0.9
    hidden_loss: Literal["mse", "relative"] = "mse"
    kl_weight: Annotated[float, Field(ge=0)] = 0.1
    temperature: Rate = 2 / 3
    finetune_loss: Literal["distill", "text"] = "distill"
    sequence_length: Annotated[int, Field(ge=8)] = 256
    batch_tokens: Annotated[int, Field(ge=16)] = 1024
    check_share: Annotated[float, Field(ge=0, lt=0.5)] = 0.03
    seed: int = 0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    mixed_precision: MixedPrecision = "auto"
    checkpoint_every_s: Rate = 120.0

    @property
    def search_steps(self) -> float:
        """Steps of the search, where nothing ends it earlier."""
        return self.steps * (1 - self.finetune_share)

    @property
    def rate_of_multipliers(self) -> float:
        """``multiplier_rate``, or what it is by default."""
        return self.multiplier_rate or RATE * self.sparsity**RATE_EXPONENT / self.search_steps

    @model_validator(mode="after")
    def _something_teaches(self) -> Self:
        """Refuses a loss of nothing, and batches that no window fits into."""
        if self.hidden_weight + self.kl_weight == 0:
            raise ValueError("hidden_weight and kl_weight are both 0; give one a positive weight")
        if self.batch_tokens < self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) hold no window of sequence_length ({self.sequence_length}); give at least as "
                "many"
            )
        return self
