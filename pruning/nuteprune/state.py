"""Everything that training changes, and its file: what resumes an interrupted run, and refuses one with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.nuteprune.lagrangian import initial_multipliers
from pruning.nuteprune.masks import Masks
from pruning.nuteprune.resident import Side
from stages.errors import InputError
from stages.folders import storage_errors
from stages.provenance import first_change

FILE = "training.pt"


@dataclass
class Position:
    """Where training stands: in its budget, and in the text."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    batch: int = 0


@dataclass
class State:
    """What training changes.

    Attributes:
        log_alphas: trained while masks are searched.
        lora: the student's low-rank matrices; more of them after the search.
        multipliers: [lam1, lam2].
        generator: draws the masks and the starts of low-rank matrices.
        position: steps and text so far.
        snapshots: teachers, oldest first, on the CPU.
        snapshot_sparsity: expected sparsity at the last snapshot.
        slide_from: steps that remained when the target was reached; None before.
        final: the frozen masks of fine-tuning; None during the search.
        curve: what each step showed.
        figures: results on the text kept out, so far.
    """

    log_alphas: Masks
    lora: dict[str, tuple[Tensor, Tensor]]
    generator: torch.Generator
    multipliers: Tensor = field(default_factory=initial_multipliers)
    position: Position = field(default_factory=Position)
    snapshots: list[Side] = field(default_factory=list)
    snapshot_sparsity: float = 0.0
    slide_from: int | None = None
    final: Masks | None = None
    curve: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def take_snapshot(self, masks: Masks, sparsity: float) -> None:
        """Adds the student as it is, on the CPU, to the teachers."""
        self.snapshots.append(Side(masks, self.lora).copied("cpu"))
        self.snapshot_sparsity = sparsity

    def dump(self) -> dict[str, Any]:
        """Plain values and tensors."""
        return {
            "log_alphas": self.log_alphas.tensors(), "lora": self.lora, "multipliers": self.multipliers,
            "generator": self.generator.get_state(), "position": asdict(self.position),
            "snapshots": [(side.masks.tensors() if side.masks else None, dict(side.lora)) for side in self.snapshots],
            "snapshot_sparsity": self.snapshot_sparsity, "slide_from": self.slide_from,
            "final": self.final.tensors() if self.final else None, "curve": self.curve, "figures": self.figures,
        }  # fmt: skip

    @classmethod
    def parse(cls, values: Mapping[str, Any], device: torch.device) -> State:
        """The state from what ``dump`` gave."""
        lora = {place: (_leaf(down, device), _leaf(up, device)) for place, (down, up) in values["lora"].items()}
        log_alphas = {name: _leaf(tensor, device) for name, tensor in values["log_alphas"].items()}
        generator = torch.Generator()
        generator.set_state(values["generator"])
        return cls(
            log_alphas=Masks(**log_alphas),
            lora=lora,
            generator=generator,
            multipliers=values["multipliers"].requires_grad_(),
            position=Position(**values["position"]),
            snapshots=[Side(Masks(**masks) if masks else None, lora) for masks, lora in values["snapshots"]],
            snapshot_sparsity=values["snapshot_sparsity"],
            slide_from=values["slide_from"],
            final=Masks(**values["final"]).on(device) if values["final"] else None,
            curve=values["curve"],
            figures=values["figures"],
        )


def _leaf(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor to train on a device: a file's remember that they were trained, and a copy of one of those is no leaf."""
    return tensor.detach().to(device).requires_grad_()


HARMLESS = ("checkpoint_every_s",)
"""Settings that may change between an interruption and its resumption."""


def save(folder: Path, state: State, optimizers: Mapping[str, torch.optim.Optimizer], identity: dict[str, Any]) -> None:
    """Writes a checkpoint beside the last one, then takes its place."""
    fresh, place = folder / f".{FILE}.partial", folder / FILE
    values = {"state": state.dump(), "optimizers": {name: one.state_dict() for name, one in optimizers.items()}}
    with storage_errors(folder):
        torch.save({**values, "identity": identity}, fresh)
        fresh.replace(place)


def load(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of an interrupted run, or None where there is none.

    Raises:
        InputError: it is unreadable, or was made with other settings or inputs; the first that differs is named.
    """
    if not (folder / FILE).is_file():
        return None
    advice = f"run with it as it was to resume, or delete {folder} to begin anew"
    try:
        values: dict[str, Any] = torch.load(folder / FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises whatever a damaged file makes it
        raise InputError(
            f"{folder / FILE}: the checkpoint of an interrupted run cannot be read; delete {folder}"
        ) from error
    if changed := first_change(values["identity"], identity, HARMLESS):
        raise InputError(f"{changed}; {advice}")
    return values
