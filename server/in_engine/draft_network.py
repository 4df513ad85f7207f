"""A small decoder with a cache of its own: what a draft of a few layers needs, and nothing around it.

Prompts are read in chunks with torch; steps are one native call (``draft_kernel``). Families as in
``server.drafting.FAMILIES``: pre-norm decoders with rotary embedding, grouped-query attention and a gated MLP.

Weights are folded: norm weights into what follows them, the scale of attention into queries. Rotary pairs are laid out side
by side (rows i and i + E/2 of a head become 2i and 2i + 1); queries and keys are permuted alike, which leaves their products
as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from server.in_engine import draft_checkpoint
from server.in_engine.draft_kernel import Cache, Weights, draft

PRODUCTS = ("qkv", "output", "gate_up", "down", "head")
"""Names of the weights that are multiplied with hidden states."""


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [.., out, in] and float32 scale [.., out], so that their product is the weight, rounded."""
    scale = weight.abs().amax(-1).clamp_min(1e-12) / 127
    return torch.round(weight / scale[..., None]).to(torch.int8), scale


def _stacked(parts: Sequence[tuple[Any, float, Any]], norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias [out] of several linear layers side by side.

    Args:
        parts: linear layer, factor of its outputs, order of its outputs.
        norm: weight of the norm before them, folded in.
    """
    before = 1.0 if norm is None else norm
    weights = [(linear.weight * before * factor)[order] for linear, factor, order in parts]
    biases = [
        torch.zeros(len(linear.weight)) if linear.bias is None else (linear.bias * factor)[order]
        for linear, factor, order in parts
    ]
    return torch.cat(weights), torch.cat(biases)


def _folded(layer: Any, head_dim: int) -> dict[str, Tensor]:
    """One layer's weights by their names in ``Weights``."""
    attention, mlp = layer.self_attn, layer.mlp
    pairs = torch.arange(head_dim).view(2, -1).t().reshape(-1)
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    orders = [(torch.arange(0, len(p.weight), head_dim)[:, None] + pairs).reshape(-1) for p in (query, key)]
    scale, found = head_dim**-0.5, {}
    if hasattr(attention, "q_norm"):
        norms = (attention.q_norm.weight * scale, attention.k_norm.weight)
        counts = [len(p.weight) // head_dim for p in (query, key)]
        found["head_norms"] = torch.cat([norm[pairs].expand(n, -1) for norm, n in zip(norms, counts, strict=True)])
        scale = 1.0
    every = slice(None)
    for name, parts, norm in (
        ("qkv", [(query, scale, orders[0]), (key, 1.0, orders[1]), (value, 1.0, every)], layer.input_layernorm),
        ("output", [(attention.o_proj, 1.0, every)], None),
        ("gate_up", [(mlp.gate_proj, 1.0, every), (mlp.up_proj, 1.0, every)], layer.post_attention_layernorm),
        ("down", [(mlp.down_proj, 1.0, every)], None),
    ):
        found[name], found[f"{name}_bias"] = _stacked(parts, None if norm is None else norm.weight)
    return found


class DraftNetwork:
    """A draft's weights and its key-value cache, one slot for each sequence.

    Positions that were written beyond a sequence's end are harmless: a later token at that position replaces them
    before any query sees them.

    Args:
        folder: a checkpoint that ``server.drafting.unsupported`` has nothing against.
        eight_bit: round the weights of all products to eight bits, each output with a scale of its own. A draft may be
            rough: what it proposes is judged by the target all the same.

    Raises:
        ValueError: an architecture that is not computed here.
    """

    def __init__(self, folder: Path, eight_bit: bool = False):
        model = draft_checkpoint.load(folder)
        config = model.config
        self.vocab_size: int = config.vocab_size
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_heads: int = config.num_attention_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._eps = np.float32(config.rms_norm_eps)
        with torch.no_grad():
            layers = [_folded(layer, self.head_dim) for layer in model.model.layers]
            self._weights = {name: torch.stack([layer[name] for layer in layers]) for name in layers[0]}
            self._weights.setdefault("head_norms", torch.empty(0, self.num_heads + self.num_kv_heads, self.head_dim))
            self._weights["embedding"] = model.model.embed_tokens.weight.detach().clone()
            self._weights["head"] = (model.lm_head.weight * model.model.norm.weight).contiguous()
            native = {name: weight.numpy() for name, weight in self._weights.items()}
            for name in PRODUCTS:
                weight = self._weights[name]
                rows, scale = _rounded(weight) if eight_bit else (weight, torch.ones(weight.shape[:-1]))
                self._weights[name] = rows * scale[..., None] if eight_bit else weight
                native |= {name: rows.numpy(), f"{name}_scale": scale.numpy()}
        self._native = Weights(**native)
        self._rotary = model.model.rotary_emb
        self._slots = self._positions = 0
        self._keys = self._values = self._cosines = self._sines = torch.empty(0)
        self._cache: Cache | None = None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._weights["qkv"])

    @property
    def bytes_per_position(self) -> int:
        """Bytes of cache that one position of one slot takes."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * 4

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
        if at_most is not None and roomy[0] * roomy[1] > at_most:
            roomy = (
                slots,
                min(at_most // slots, positions * 5 // 4),
            )  # not by the token, which would copy all of it each step
        self._grow(*roomy)
        return True

    def release(self, above: int) -> None:
        """Gives the cache back, and what is in it, where it holds more than ``above`` slots times positions."""
        if self._slots * self._positions > above:
            self._slots = self._positions = 0
            self._keys = self._values = self._cosines = self._sines = torch.empty(0)
            self._cache = None

    @torch.inference_mode()
    def _grow(self, slots: int, positions: int) -> None:
        grown = torch.zeros(2, self.num_layers, slots, self.num_kv_heads, self.head_dim, positions)
        if self._cache is not None:
            grown[0, :, : self._slots, ..., : self._positions] = self._keys
            grown[1, :, : self._slots, ..., : self._positions] = self._values
        self._slots, self._positions = slots, positions
        self._keys, self._values = grown
        cosines, sines = self._rotary(torch.empty(1), torch.arange(positions)[None])
        half = self.head_dim // 2
        self._cosines, self._sines = cosines[0, :, :half].contiguous(), sines[0, :, :half].contiguous()
        self._cache = Cache(*(t.numpy() for t in (self._keys, self._values, self._cosines, self._sines)))

    def draft(
        self,
        new: Sequence[Sequence[int]],
        starts: Sequence[int],
        slots: Sequence[int],
        temperatures: Sequence[float],
        uniforms: Any,
    ) -> tuple[list[list[int]], Tensor | None]:
        """Draft tokens of several sequences, and what they were drawn from.

        Args:
            new: the tokens of each sequence that are not in the cache yet, at least one each; meant for few.
            starts: how many positions of each slot are valid; the new tokens follow there.
            slots: the slot of each sequence, all different.
            temperatures: 0 is greedy.
            uniforms: float64 numbers in [0, 1) [sequences, draft tokens]; one decides each draw.

        Returns:
            tokens, and probabilities float32 [sequences, draft tokens, vocabulary]; None where all are greedy.
        """
        ends = [start + len(tokens) for start, tokens in zip(starts, new, strict=True)]
        drawn = any(temperature > 0 for temperature in temperatures)
        probabilities = np.empty((*uniforms.shape, self.vocab_size if drawn else 0), np.float32)
        chosen = draft(
            np.array([token for tokens in new for token in tokens], np.int64), np.array(starts, np.int64),
            np.array(ends, np.int64), np.array(slots, np.int64), np.array(temperatures, np.float64),
            uniforms, probabilities, self._native, self._cache, self.num_heads, self._eps,
        )  # fmt: skip
        return chosen.tolist(), torch.from_numpy(probabilities) if drawn else None

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], start: int, slot: int) -> None:
        """Puts a chunk of one sequence into the cache: of the last layer keys and values alone, which is all that later tokens see.

        Args:
            start: how many positions of the slot are valid; the chunk follows there.
        """
        last = self.num_layers - 1
        self._remember(self._passed(tokens, start, slot, last), last, start, slot)

    @torch.inference_mode()
    def states(self, tokens: Sequence[int], start: int, slot: int) -> Tensor:
        """Puts a chunk into the cache as ``read`` does; its normalised hidden states [tokens, hidden]."""
        return self._norm(self._passed(tokens, start, slot, self.num_layers))

    def _passed(self, tokens: Sequence[int], start: int, slot: int, layers: int) -> Tensor:
        """Hidden states [tokens, hidden] of a chunk behind so many layers, which remember it."""
        w, count, end = self._weights, len(tokens), start + len(tokens)
        visible = torch.ones(count, end, dtype=torch.bool).tril(start) if start else None
        hidden = functional.embedding(torch.tensor(list(tokens)), w["embedding"])
        for layer in range(layers):
            queries = self._remember(hidden, layer, start, slot)
            attended = functional.scaled_dot_product_attention(
                queries.transpose(0, 1)[None], self._cached(self._keys, layer, slot, end),
                self._cached(self._values, layer, slot, end), visible, is_causal=visible is None, scale=1.0,
            )  # fmt: skip
            attended = attended[0].transpose(0, 1).reshape(count, -1)
            hidden = hidden + functional.linear(attended, w["output"][layer], w["output_bias"][layer])
            wide = functional.linear(self._norm(hidden), w["gate_up"][layer], w["gate_up_bias"][layer])
            gate, up = wide.chunk(2, dim=-1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, w["down"][layer], w["down_bias"][layer])
        return hidden

    def _remember(self, hidden: Tensor, layer: int, start: int, slot: int) -> Tensor:
        """Writes a layer's keys and values of a chunk into the cache; its queries [tokens, heads, head dimension]."""
        end = start + len(hidden)
        qkv = functional.linear(self._norm(hidden), self._weights["qkv"][layer], self._weights["qkv_bias"][layer])
        heads = qkv.view(len(hidden), -1, self.head_dim)
        queries, keys, values = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        turned = self._rotated(torch.cat([queries, keys], 1), layer, start)
        self._keys[layer, slot, ..., start:end] = turned[:, self.num_heads :].permute(1, 2, 0)
        self._values[layer, slot, ..., start:end] = values.permute(1, 2, 0)
        return turned[:, : self.num_heads]

    def _cached(self, part: Tensor, layer: int, slot: int, end: int) -> Tensor:
        """Keys or values [1, heads, end, head dimension], in memory as torch's fast attention wants them."""
        own = part[layer, slot, ..., :end].mT.contiguous()
        return own.repeat_interleave(self.num_heads // self.num_kv_heads, 0)[None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of hidden states."""
        return functional.linear(hidden, self._weights["head"])

    def _norm(self, hidden: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), None, float(self._eps))

    def _rotated(self, heads: Tensor, layer: int, start: int) -> Tensor:
        """Queries and keys [tokens, heads, head dimension], normalised where the family does, turned by their positions."""
        if len(self._weights["head_norms"]):
            heads = self._norm(heads) * self._weights["head_norms"][layer]
        even, odd = heads[..., ::2], heads[..., 1::2]
        cosines, sines = (t[start : start + len(heads), None] for t in (self._cosines, self._sines))
        return torch.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).flatten(-2)
