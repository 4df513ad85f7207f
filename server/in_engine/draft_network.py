"""A small decoder run straight in torch: what a draft of a few layers needs, and nothing around it.

On a CPU a step of a small draft inside the engine costs milliseconds of dispatch (forward context, attention metadata, single
operations for norms and rotary embedding) for microseconds of arithmetic. Here a token takes about fifteen operations a layer.

Families as in ``server.drafting.FAMILIES``: pre-norm decoders with rotary embedding, grouped-query attention and a gated MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from server.drafting import unsupported


class Layer:
    """The weights of one decoder layer, folded: norm weights into what follows them, the scale of attention into queries.

    Rotary pairs are laid out side by side (rows i and i + d/2 of a head become 2i and 2i + 1), so that a rotation is one
    complex product. Queries and keys are permuted alike, which leaves their products as they were.
    """

    def __init__(self, layer: Any, head_dim: int, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        pairs = torch.arange(head_dim).view(2, -1).t().reshape(-1)
        scale = head_dim**-0.5
        norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.head_norms = None
        """[query and key heads, head dimension], where a family normalises queries and keys."""
        if norms:
            counts = [len(linear.weight) // head_dim for linear in (attention.q_proj, attention.k_proj)]
            scaled = (norms[0].weight.float() * scale, norms[1].weight.float())
            self.head_norms = torch.cat([w[pairs].expand(n, -1) for w, n in zip(scaled, counts, strict=True)]).to(dtype)
            scale = 1.0
        orders = [_head_rows(linear, head_dim, pairs) for linear in (attention.q_proj, attention.k_proj)]
        qkv = [
            (attention.q_proj, scale, orders[0]),
            (attention.k_proj, 1.0, orders[1]),
            (attention.v_proj, 1.0, slice(None)),
        ]
        self.qkv, self.qkv_bias = _stacked(qkv, layer.input_layernorm.weight, dtype)
        self.output, self.output_bias = _stacked([(attention.o_proj, 1.0, slice(None))], None, dtype)
        gate_up = [(linear, 1.0, slice(None)) for linear in (mlp.gate_proj, mlp.up_proj)]
        self.gate_up, self.gate_up_bias = _stacked(gate_up, layer.post_attention_layernorm.weight, dtype)
        self.down, self.down_bias = _stacked([(mlp.down_proj, 1.0, slice(None))], None, dtype)
        self.keys = self.values = torch.empty(0)


def _head_rows(linear: Any, head_dim: int, order: Tensor) -> Tensor:
    """Row numbers of a projection with the rows of each head in ``order``."""
    return (torch.arange(0, len(linear.weight), head_dim)[:, None] + order).reshape(-1)


def _stacked(
    parts: Sequence[tuple[Any, float, Any]], norm: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Weight [in, out] and bias [out] of several linear layers side by side.

    Args:
        parts: linear layer, factor of its outputs, order of its outputs.
        norm: weight of the norm before them, folded in.
    """
    before = 1.0 if norm is None else norm.float()
    weights = [(linear.weight.float() * before * factor)[order] for linear, factor, order in parts]
    biases = [None if linear.bias is None else (linear.bias.float() * factor)[order] for linear, factor, order in parts]
    weight = torch.cat(weights).to(dtype).t().contiguous()
    if all(bias is None for bias in biases):
        return weight, None
    zeros = [torch.zeros(len(rows)) for rows in weights]
    return weight, torch.cat([z if b is None else b for z, b in zip(zeros, biases, strict=True)]).to(dtype)


class DraftNetwork:
    """A draft with a key-value cache of its own, one slot for each sequence.

    Positions that were written beyond a sequence's end are harmless: a later token at that position replaces them
    before any query sees them.

    Args:
        folder: a checkpoint that ``server.drafting.unsupported`` has nothing against.
        dtype: of weights, activations and cache.

    Raises:
        ValueError: an architecture that is not computed here.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        refused = unsupported(config.to_dict())
        if refused is not None:
            raise ValueError(f"{folder}: {refused}")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.config = config
        self.vocab_size: int = config.vocab_size
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_heads: int = config.num_attention_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.eps: float = config.rms_norm_eps
        self.dtype = dtype
        with torch.no_grad():
            self.embedding = model.model.embed_tokens.weight.to(dtype)
            self.layers = [Layer(layer, self.head_dim, dtype) for layer in model.model.layers]
            head = model.lm_head.weight.float() * model.model.norm.weight.float()
            self.head = head.to(dtype).t().contiguous()
        self._rotary = model.model.rotary_emb
        self._rotations = torch.empty(0)
        self._slots = self._positions = 0

    @property
    def bytes_per_position(self) -> int:
        """Bytes of cache that one position of one slot takes."""
        return len(self.layers) * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def reserve(self, slots: int, positions: int, at_most: int | None = None) -> bool:
        """Makes the cache hold at least ``slots`` sequences of ``positions`` tokens; what is in it stays.

        Args:
            at_most: slots times positions that the cache may grow to; None is no bound.

        Returns:
            False, with nothing changed, where that bound forbids it.
        """
        if slots <= self._slots and positions <= self._positions:
            return True
        slots = max(slots, self._slots)
        positions = max(positions, self._positions)
        if at_most is not None and slots * positions > at_most:
            return False
        roomy = 1 << (slots - 1).bit_length(), 1 << (positions - 1).bit_length()
        self._grow(*(roomy if at_most is None or roomy[0] * roomy[1] <= at_most else (slots, positions)))
        return True

    def _grow(self, slots: int, positions: int) -> None:
        old_slots, old_positions = self._slots, self._positions
        self._slots, self._positions = slots, positions
        for layer in self.layers:
            for name in ("keys", "values"):
                grown = torch.zeros(self._slots, self.num_kv_heads, self._positions, self.head_dim, dtype=self.dtype)
                if old_slots:
                    grown[:old_slots, :, :old_positions] = getattr(layer, name)
                setattr(layer, name, grown)
        with torch.inference_mode():
            cos, sin = self._rotary(torch.empty(1), torch.arange(self._positions)[None])
            half = self.head_dim // 2
            self._rotations = torch.complex(cos[0, :, None, :half].float(), sin[0, :, None, :half].float())

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits [rows, vocabulary] of hidden states [rows, hidden]."""
        return torch.mm(hidden, self.head).float()

    def forward(self, tokens: Tensor, starts: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Normalised hidden states [sequences, new tokens, hidden] after the last layer.

        Args:
            tokens: [sequences, new tokens], shorter rows padded with any token at their end.
            starts: for each sequence, how many positions of its slot are valid; the new tokens follow there.
            slots: the slot of each sequence, all different.
        """
        place = _Place.of(starts, slots, tokens.shape[1], self._rotations, self.num_heads // self.num_kv_heads)
        hidden = functional.embedding(tokens.reshape(-1), self.embedding)
        for layer in self.layers:
            qkv = _product(self._norm(hidden), layer.qkv, layer.qkv_bias)
            hidden = _product(self._attend(layer, qkv, place), layer.output, layer.output_bias, hidden)
            gate, up = _product(self._norm(hidden), layer.gate_up, layer.gate_up_bias).chunk(2, dim=1)
            hidden = _product(functional.silu(gate).mul_(up), layer.down, layer.down_bias, hidden)
        return self._norm(hidden).view(*tokens.shape, -1)

    def _norm(self, hidden: Tensor) -> Tensor:
        """RMSNorm without weights over the last axis; a third of the time of torch's own on a CPU with few rows."""
        return hidden * hidden.float().square().mean(-1, keepdim=True).add_(self.eps).rsqrt_().to(hidden.dtype)

    def _attend(self, layer: Layer, qkv: Tensor, place: _Place) -> Tensor:
        """Rotates queries and keys, writes keys and values to the cache, and attends to all of each sequence."""
        heads, groups, size = self.num_heads, self.num_kv_heads, self.head_dim
        rotated, values = qkv.split([(heads + groups) * size, groups * size], dim=1)
        if layer.head_norms is not None:
            rotated = (self._norm(rotated.reshape(-1, heads + groups, size)) * layer.head_norms).flatten(1)
        pairs = torch.view_as_complex(rotated.float().reshape(-1, heads + groups, size // 2, 2))
        rotated = torch.view_as_real(pairs * place.rotations).to(self.dtype)
        sequences, count = place.shape
        rotated = rotated.view(sequences, count, heads + groups, size)
        keys, cached = place.write(layer, rotated[:, :, heads:], values.view(sequences, count, groups, size))
        queries = rotated[:, :, :heads].view(sequences, count, groups, -1, size)
        queries = queries.permute(0, 2, 1, 3, 4).reshape(sequences, groups, -1, size)
        attended = functional.scaled_dot_product_attention(queries, keys, cached, place.visible, scale=1.0)
        if count == 1:
            return attended.reshape(sequences, -1)
        return attended.view(sequences, groups, count, -1, size).transpose(1, 2).reshape(sequences * count, -1)


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
    """``rows @ weight``, plus what is given to be added."""
    if bias is not None:
        added = bias.expand(len(rows), -1) if added is None else added + bias
    return torch.mm(rows, weight) if added is None else torch.addmm(added, rows, weight)


class _Place:
    """Where the new tokens of a forward pass stand: what all its layers share.

    Attributes:
        shape: (sequences, new tokens).
        rotations: [sequences * new tokens, 1, head dimension / 2], complex.
        visible: [sequences, 1, new tokens * queries of a group, positions]: what a query may see; None when all.
    """

    def __init__(self, shape: tuple[int, int], write_to: tuple[Any, Any], read: Any, end: int):
        self.shape = shape
        self._write_to = write_to
        self._read = read
        self._end = end
        self.rotations = torch.empty(0)
        self.visible: Tensor | None = None

    @classmethod
    def of(cls, starts: Sequence[int], slots: Sequence[int], count: int, rotations: Tensor, group: int) -> _Place:
        """For ``count`` new tokens of each sequence, at ``starts``; ``group`` is the queries for each key."""
        end = max(starts) + count
        if len(slots) == 1:
            start, row = starts[0], slice(slots[0], slots[0] + 1)
            place = cls((1, count), (row, slice(start, end)), row, end)
            place.rotations = rotations[start:end]
            if count > 1:
                place.visible = torch.ones(count, end, dtype=torch.bool).tril(start).repeat_interleave(group, 0)
            return place
        positions = torch.tensor(starts)[:, None] + torch.arange(count)
        index, first = torch.tensor(slots), slots[0]
        contiguous = list(slots) == list(range(first, first + len(slots)))
        rows = slice(first, first + len(slots)) if contiguous else index
        place = cls((len(slots), count), (index[:, None], positions), rows, end)
        place.rotations = rotations[positions.reshape(-1)]
        place.visible = (torch.arange(end) <= positions[:, :, None]).repeat_interleave(group, 1)[:, None]
        return place

    def write(self, layer: Layer, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts new keys and values [sequences, new tokens, heads, head dimension] in; gives those of whole sequences."""
        slots, positions = self._write_to
        for cache, new in ((layer.keys, keys), (layer.values, values)):
            cache[slots, :, positions] = new.transpose(1, 2) if isinstance(slots, slice) else new
        return layer.keys[self._read, :, : self._end], layer.values[self._read, :, : self._end]
