"""The one resident base, and what turns it into a student or a teacher: masks and low-rank matrices that it wears for a pass.

The base's weights are frozen and never written to, in training or evaluation: no library merges anything into them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from pruning.families import family_of
from pruning.nuteprune.masks import Masks

PARTS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""The linear parts of a layer."""
SEARCHED = ("self_attn.q_proj", "self_attn.v_proj")
"""The parts that have low-rank matrices while masks are searched; afterwards all have."""

Lora = Mapping[str, tuple[Tensor, Tensor]]
"""Low-rank matrices A [r, in] and B [out, r] by place, e.g. ``3.self_attn.q_proj``."""
NeuronMask = Literal["gate_and_up", "product"]


@dataclass(frozen=True)
class Side:
    """What a version of the model has beside the base; nothing at all is the intact model."""

    masks: Masks | None = None
    lora: Lora = field(default_factory=dict)

    def copied(self, device: torch.device | str) -> Side:
        """A copy on a device that no later step changes, without gradient."""
        lora = {
            place: (a.detach().to(device, copy=True), b.detach().to(device, copy=True))
            for place, (a, b) in self.lora.items()
        }
        return Side(self.masks.copied(device) if self.masks else None, lora)


INTACT = Side()


class Worn(nn.Module):
    """A linear part of the base with what it wears: input mask, output mask, low-rank matrices."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.take_off()

    def take_off(self) -> None:
        """Leaves the bare base."""
        self.inputs: Tensor | None = None
        self.outputs: Tensor | None = None
        self.lora: tuple[Tensor, Tensor] | None = None
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """m_out * (W (m_in * x) + scale B A (m_in * x))."""
        if self.inputs is not None:
            x = x * self.inputs.to(x)
        y: Tensor = self.base(x)
        if self.lora is not None:
            a, b = (matrix.to(x) for matrix in self.lora)
            y = y + self.scale * functional.linear(functional.linear(x, a), b)
        return y if self.outputs is None else y * self.outputs.to(y)

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Writes what is worn into the base's own weights, and returns it: the only place that changes them."""
        weight = self.base.weight.float()
        if self.lora is not None:
            a, b = (matrix.to(weight) for matrix in self.lora)
            weight = weight + self.scale * b @ a
        if self.inputs is not None:
            weight = weight * self.inputs.to(weight)
        if self.outputs is not None:
            weight = weight * self.outputs.to(weight)[:, None]
            if self.base.bias is not None:
                self.base.bias.mul_(self.outputs.to(self.base.bias))
        self.base.weight.copy_(weight)
        return self.base


class Resident:
    """A base whose linear parts can wear things; ``wearing`` makes it a student or a teacher for as long as it lasts."""

    def __init__(self, model: PreTrainedModel, scale: float, neuron_mask: NeuronMask = "gate_and_up"):
        self.model, self.scale, self.neuron_mask = model.requires_grad_(False), scale, neuron_mask
        self.family = family_of(model.config)
        self.hidden: Tensor | None = None
        self.parts: dict[str, Worn] = {}
        for index, layer in enumerate(self.family.layers_of(model)):
            for part in PARTS:
                self.parts[f"{index}.{part}"] = Worn(layer.get_submodule(part))
                layer.set_submodule(part, self.parts[f"{index}.{part}"])
        self._handles = [
            model.get_input_embeddings().register_forward_hook(lambda _, __, output: self.narrowed(output)),
            self.family.head_of(model).register_forward_pre_hook(lambda _, args: (self.narrowed(args[0]),)),
        ]

    def narrowed(self, states: Tensor) -> Tensor:
        """States [..., D] times the mask of hidden dimensions, where one is worn."""
        return states if self.hidden is None else states * self.hidden.to(states)

    def new_lora(self, parts: Sequence[str], rank: int, generator: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
        """Fresh low-rank matrices for these parts of every layer: A uniform as in LoRA's own code, B zero."""
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for place in (place for place in self.parts if place.partition(".")[2] in parts):
            base = self.parts[place].base
            bound = 1 / math.sqrt(base.in_features)
            a = (torch.rand(rank, base.in_features, generator=generator) * 2 - 1) * bound
            b = torch.zeros(base.out_features, rank)
            made[place] = (a.to(base.weight.device).requires_grad_(), b.to(base.weight.device).requires_grad_())
        return made

    def _wear_masks(self, masks: Masks) -> None:
        """Hands each part its masks."""
        num_heads, head_dim = self.model.config.num_attention_heads, self.parts["0.self_attn.o_proj"].base.in_features
        head_dim //= num_heads
        for index, (groups, neurons) in enumerate(zip(masks.groups, masks.neurons, strict=True)):
            heads = groups.repeat_interleave(num_heads // len(groups) * head_dim)
            self.parts[f"{index}.self_attn.o_proj"].inputs = heads
            self.parts[
                f"{index}.mlp.down_proj"
            ].inputs = neurons  # as if on up's outputs: nothing nonlinear lies between
            if self.neuron_mask == "gate_and_up":
                self.parts[f"{index}.mlp.gate_proj"].outputs = neurons
            for part in ("self_attn.o_proj", "mlp.down_proj"):
                self.parts[f"{index}.{part}"].outputs = masks.hidden
        self.hidden = masks.hidden

    @contextmanager
    def wearing(self, side: Side) -> Iterator[PreTrainedModel]:
        """Within it, the model is the base with ``side``."""
        try:
            if side.masks is not None:
                self._wear_masks(side.masks)
            for place, matrices in side.lora.items():
                self.parts[place].lora, self.parts[place].scale = matrices, self.scale
            yield self.model
        finally:
            self.hidden = None
            for part in self.parts.values():
                part.take_off()

    @torch.no_grad()
    def fold(self, side: Side) -> PreTrainedModel:
        """Makes ``side`` part of the base's weights and gives the plain model back; the resident is used up.

        Soft masks go into columns of o_proj and down_proj and rows of gate_proj; hidden ones into rows of o_proj and
        down_proj and into embeddings and head, which both wear them, so that tied ones stay tied.
        """
        with self.wearing(side):
            for place, part in self.parts.items():
                index, _, name = place.partition(".")
                self.family.layers_of(self.model)[int(index)].set_submodule(name, part.fold())
            if self.hidden is not None:
                weights = [self.model.get_input_embeddings().weight, self.family.head_of(self.model).weight]
                for weight in weights[: 1 if weights[0] is weights[1] else 2]:
                    weight.mul_(self.hidden.to(weight))
        for handle in self._handles:
            handle.remove()
        return self.model


def parameters_of(lora: Lora) -> list[Any]:
    """All matrices, in order."""
    return [matrix for pair in lora.values() for matrix in pair]
