"""The two phases of training: the search for masks under growing sparsity, then fine-tuning with the masks frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pruning.calibration import Batch
from pruning.nuteprune import loss, state, teachers, text
from pruning.nuteprune.lagrangian import multiplier_optimizer, penalty, ramp
from pruning.nuteprune.masks import Masks, clamp_all, deterministic_all, initial_masks, sample_all
from pruning.nuteprune.resident import INTACT, PARTS, SEARCHED, Resident, Side, parameters_of
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.sparsity import Units, expected, final_masks
from pruning.nuteprune.state import Position, State
from stages.interruption import interrupted_between_steps
from stages.processor import multiplies_bfloat16
from stages.progress import log, progress

CLIP = 1.0
"""Largest norm of the low-rank matrices' gradient."""
FAR_ENOUGH = 0.9
"""Share of the wanted sparsity from which on a search is not said to fall short where the rest is cut by the masks' order
(``exact``): that costs little."""


class Trainer:
    """One run: the resident base, the state around it, its optimisers, and where checkpoints go."""

    def __init__(
        self, model: PreTrainedModel, units: Units, settings: NutePruneSettings, folder: Path, identity: dict[str, Any]
    ):
        self.units, self.settings, self.folder, self.identity = units, settings, folder, identity
        self.resident = Resident(model, settings.lora_alpha / settings.lora_rank, settings.neuron_mask)
        self.weights = loss.Weights(
            settings.hidden_weight, settings.kl_weight, settings.temperature, settings.hidden_loss == "relative"
        )
        self.schedule = teachers.intact if settings.teachers == "intact" else teachers.numerous(settings.teacher_gap)
        found = state.load(folder, identity)
        self.state = self._first() if found is None else State.parse(found["state"], model.device)
        self.optimizers = self._finetuners() if self.state.final is not None else self._searchers()
        if found is not None:
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(found["optimizers"][name])
            log(f"training resumes at step {self.state.position.step}")

    def _first(self) -> State:
        """The state before the first step."""
        settings, units = self.settings, self.units
        generator = torch.Generator().manual_seed(settings.seed)
        hidden = units.hidden if settings.hidden else None
        masks = initial_masks(units.num_layers, units.groups, units.neurons, hidden, settings.initial_drop)
        placed = {name: tensor.detach().to(self.resident.model.device) for name, tensor in masks.tensors().items()}
        log_alphas = Masks(**{name: tensor.requires_grad_() for name, tensor in placed.items()})
        return State(log_alphas, self.resident.new_lora(SEARCHED, settings.lora_rank, generator), generator)

    def _searchers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers of the search."""
        masks = list(self.state.log_alphas.tensors().values())
        return {
            "masks": torch.optim.AdamW(masks, lr=self.settings.mask_rate, weight_decay=0.0),
            "lora": torch.optim.AdamW(parameters_of(self.state.lora), lr=self.settings.lora_rate, weight_decay=0.0),
            "multipliers": multiplier_optimizer(self.state.multipliers, self.settings.rate_of_multipliers),
        }

    def _finetuners(self) -> dict[str, torch.optim.Optimizer]:
        """The optimiser of fine-tuning."""
        matrices = parameters_of(self.state.lora)
        return {"lora": torch.optim.AdamW(matrices, lr=self.settings.finetune_rate, weight_decay=0.0)}

    def autocast(self) -> AbstractContextManager[Any]:
        """Multiplies matrices in bfloat16 where the settings say so, or the hardware does it itself."""
        wanted, device = self.settings.mixed_precision, self.resident.model.device.type
        if wanted == "no" or (wanted == "auto" and not fast_bfloat16(device)):
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16)

    def done(self) -> float:
        """Share of the budget used: of steps, tokens or seconds, whichever is further."""
        position, settings = self.state.position, self.settings
        shares = [position.step / settings.steps]
        shares += [position.tokens / settings.tokens] if settings.tokens else []
        shares += [position.seconds / settings.max_seconds] if settings.max_seconds else []
        return min(max(shares), 1.0)

    def searched(self) -> float:
        """Share of the search that is over."""
        return min(self.done() / (1 - self.settings.finetune_share), 1.0)

    def teacher(self) -> int | None:
        """Which snapshot teaches now; None for the intact model. Also notes when the target is reached."""
        remaining = round(self.settings.search_steps * (1 - self.searched()))
        with torch.no_grad():
            sparsity = float(expected(self.state.log_alphas, self.units))
        arrived = teachers.reached(sparsity, self.settings.sparsity, self.settings.snapshot_every)
        if self.state.slide_from is None and arrived:
            self.state.slide_from = remaining
        return self.schedule(len(self.state.snapshots), remaining, self.state.slide_from)

    def search_step(self, batch: Batch) -> dict[str, Any]:
        """One step of the search; returns what it showed."""
        state, which = self.state, self.teacher()
        side = INTACT if which is None else state.snapshots[which]
        aim = ramp(self.settings.sparsity, self.searched(), self.settings.warmup_share)
        with self.autocast():
            signal = loss.teach(self.resident, side, batch, self.weights.hidden > 0)
            student = Side(sample_all(state.log_alphas, state.generator), state.lora)
            value, seen = loss.learn(self.resident, student, batch, signal, self.weights)
        sparsity = expected(state.log_alphas, self.units)
        self._update(value + penalty(sparsity, aim, state.multipliers.to(sparsity.device)))
        clamp_all(state.log_alphas)
        now = float(expected(state.log_alphas, self.units).detach())
        growing = state.slide_from is None
        if growing and teachers.snapshot_due(now, state.snapshot_sparsity, self.settings.snapshot_every):
            state.take_snapshot(deterministic_all(state.log_alphas), now)
        return {"sparsity": now, "aim": aim, "teacher": "intact" if which is None else which, **seen}

    def finetune_step(self, batch: Batch) -> dict[str, Any]:
        """One step with frozen masks; the learning rate falls to 0 at the end."""
        student = Side(self.state.final, self.state.lora)
        share = (1 - self.done()) / self.settings.finetune_share
        for group in self.optimizers["lora"].param_groups:
            group["lr"] = self.settings.finetune_rate * share
        with self.autocast():
            if self.settings.finetune_loss == "text":
                value, seen = loss.learn_text(self.resident, student, batch)
            else:
                signal = loss.teach(self.resident, INTACT, batch, self.weights.hidden > 0)
                value, seen = loss.learn(self.resident, student, batch, signal, self.weights)
        self._update(value)
        return {"teacher": "text" if self.settings.finetune_loss == "text" else "intact", **seen}

    def _update(self, value: Tensor) -> None:
        """Backward pass and one step of every optimiser."""
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_(parameters_of(self.state.lora), CLIP)
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    def freeze(self) -> None:
        """Ends the search: the masks take their final form, all linear parts get low-rank matrices."""
        settings, state = self.settings, self.state
        wanted = settings.sparsity if settings.exact else None
        state.final = final_masks(state.log_alphas, self.units, wanted, settings.export, settings.multiple_of)
        state.figures["multiplier_rate"] = settings.rate_of_multipliers
        state.figures["expected_sparsity"] = float(expected(state.log_alphas, self.units).detach())
        rest = tuple(part for part in PARTS if part not in SEARCHED)
        state.lora |= self.resident.new_lora(rest, settings.lora_rank, state.generator)
        self.optimizers = self._finetuners()

    def save(self) -> None:
        """Writes a checkpoint."""
        state.save(self.folder, self.state, self.optimizers, self.identity)

    def train(self, windows: Sequence[text.Window], check: Sequence[Batch]) -> Side:
        """Trains until the budget is used up; checkpoints on the way and when interrupted; returns the final student."""
        with interrupted_between_steps() as interrupted:
            self._train(windows, check, interrupted)
        assert self.state.final is not None
        return Side(self.state.final, self.state.lora)

    def _train(self, windows: Sequence[text.Window], check: Sequence[Batch], interrupted: Callable[[], bool]) -> None:
        """Steps over the text; the search ends between two of them."""
        saved = time.monotonic()
        with progress("nuteprune", 100, "%", done=100 * self.done()) as advance:
            for batch in self._batches(windows):
                started, before = time.monotonic(), self.done()
                self._end_search_when_due(check)
                if before >= 1:
                    return
                seen = self.search_step(batch) if self.state.final is None else self.finetune_step(batch)
                self._advance_position(batch, seen, started)
                advance(100 * (self.done() - before), note=note(self.state.position, seen))
                if interrupted():
                    self.save()
                    raise KeyboardInterrupt
                if time.monotonic() - saved > self.settings.checkpoint_every_s:
                    self.save()
                    saved = time.monotonic()

    def _batches(self, windows: Sequence[text.Window]) -> Iterator[Batch]:
        """Batches from the place in the text on, epoch after epoch."""
        position = self.state.position
        while True:
            epoch = text.epoch(windows, self.settings.batch_tokens, self.settings.seed, position.epoch)
            for number, batch in enumerate(epoch):
                if number >= position.batch:
                    yield batch.to(self.resident.model.device)
            position.epoch, position.batch = position.epoch + 1, 0

    def _advance_position(self, batch: Batch, seen: dict[str, Any], started: float) -> None:
        """Counts a step, and keeps what it showed."""
        position = self.state.position
        position.step, position.batch = position.step + 1, position.batch + 1
        position.tokens += batch.num_tokens
        position.seconds += time.monotonic() - started
        rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in seen.items()}
        self.state.curve.append({"step": position.step, **rounded})

    def _end_search_when_due(self, check: Sequence[Batch]) -> None:
        """Freezes the masks when the search's share of the budget is used up, and says what they cost so far."""
        if self.state.final is None and self.searched() >= 1:
            self.freeze()
            for line in self.shortcomings():
                log(line)
            self.check("searched", check)

    def shortcomings(self) -> list[str]:
        """What a search that is over was asked for and did not do, a line each."""
        settings, found, lines = self.settings, self.state.figures["expected_sparsity"], []
        rate = f"multiplier_rate ({settings.rate_of_multipliers:.3g})"
        remedy = f"raise {rate}"
        arrived = teachers.reached(found, settings.sparsity, settings.snapshot_every)
        is_enough = found >= FAR_ENOUGH * settings.sparsity if settings.exact else arrived
        if not is_enough:
            rest = "the rest is cut by the masks' order" if settings.exact else "the model stays larger"
            lines.append(
                f"the search ended at a sparsity of {found:.3f} instead of {settings.sparsity:g}; {rest}; {remedy}"
            )
        elif found > settings.sparsity + settings.snapshot_every / 2:
            rest = "neurons are opened again to fit" if settings.exact else "the model gets smaller than that"
            lines.append(
                f"the search ended at a sparsity of {found:.3f} instead of {settings.sparsity:g}; {rest}; lower {rate}"
            )
        if settings.teachers == "numerous" and all(step["teacher"] == "intact" for step in self.state.curve):
            taken, gap = len(self.state.snapshots), settings.teacher_gap
            lines.append(
                f"no snapshot ever taught: {taken} were taken, and the teacher is {gap} behind; {remedy}, or lower teacher_gap"
            )
        return lines

    def check(self, name: str, batches: Sequence[Batch]) -> None:
        """Notes divergence and agreement of the student with the target on text that was kept out."""
        with self.autocast():
            student = Side(self.state.final, self.state.lora)
            self.state.figures[name] = loss.check(self.resident, student, list(batches))


def fast_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 itself; a CPU without the instructions takes ten times as long as for float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies_bfloat16() if device == "cpu" else False


def note(position: Position, seen: dict[str, Any]) -> str:
    """What stands beside the progress bar."""
    parts = [f"step {position.step}"]
    if "sparsity" in seen:
        parts.append(f"sparsity {seen['sparsity']:.3f} of {seen['aim']:.3f}")
    parts += [f"{name} {seen[name]:.3f}" for name in ("hidden", "kl", "text") if name in seen]
    teacher = seen["teacher"]
    parts.append(f"teacher {teacher if isinstance(teacher, str) else f'snapshot {teacher}'}")
    return ", ".join(parts)
