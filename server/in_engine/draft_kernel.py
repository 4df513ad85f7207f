"""The steps of a small draft as one native function, compiled by numba (which vLLM needs anyway).

A draft of a few layers is some hundred thousand multiplications a token; run operation by operation it is a millisecond of
dispatch for a tenth of arithmetic. Here one call drafts all tokens of all requests. Everything is float32, row-major.

Weights may also be eight-bit integers with a scale for each output: a quarter of the bytes that every token has to read.

Axis letters: B sequences, L layers, S slots, G key-value heads, H query heads, P positions, E head dimension, D hidden,
F width of the MLP, V vocabulary. Weights are [out, in].
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit


class Weights(NamedTuple):
    """A draft's weights, folded as ``draft_network`` describes: float32, or int8 to be multiplied by ``*_scale`` [.., out]."""

    embedding: Any
    """[V, D]"""
    qkv: Any
    """[L, (H + 2 G) E, D]"""
    qkv_scale: Any
    qkv_bias: Any
    head_norms: Any
    """[L, H + G, E], or of zero layers where queries and keys are not normalised."""
    output: Any
    """[L, D, H E]"""
    output_scale: Any
    output_bias: Any
    gate_up: Any
    """[L, 2 F, D]"""
    gate_up_scale: Any
    gate_up_bias: Any
    down: Any
    """[L, D, F]"""
    down_scale: Any
    down_bias: Any
    head: Any
    """[V, D]"""
    head_scale: Any


class Cache(NamedTuple):
    """Keys and values [L, S, G, E, P] of all sequences, and the rotations [P, E / 2] of all positions."""

    keys: Any
    values: Any
    cosines: Any
    sines: Any


_inner = njit(fastmath=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""For functions that only ``draft`` calls: they are compiled into it, and kept with it."""


@_inner
def _product(x, weight, scale, bias, out):  # type: ignore[no-untyped-def]
    """out[b, o] = bias[o] + scale[o] sum_i weight[o, i] x[b, i], in tiles of two outputs by four rows, or four by one.

    A tile converts each weight once for its rows and loads each input once for its outputs. ``x`` must be contiguous.
    """
    outputs, rows = weight.shape[0] // 2 * 2, x.shape[0] // 4 * 4
    zero = np.float32(0)
    for o in range(0, outputs, 2):
        for b in range(0, rows, 4):
            a0, a1, a2, a3 = zero, zero, zero, zero
            b0, b1, b2, b3 = zero, zero, zero, zero
            for i in range(weight.shape[1]):
                first, second = np.float32(weight[o, i]), np.float32(weight[o + 1, i])
                a0 += first * x[b, i]
                a1 += first * x[b + 1, i]
                a2 += first * x[b + 2, i]
                a3 += first * x[b + 3, i]
                b0 += second * x[b, i]
                b1 += second * x[b + 1, i]
                b2 += second * x[b + 2, i]
                b3 += second * x[b + 3, i]
            out[b, o], out[b, o + 1] = a0, b0
            out[b + 1, o], out[b + 1, o + 1] = a1, b1
            out[b + 2, o], out[b + 2, o + 1] = a2, b2
            out[b + 3, o], out[b + 3, o + 1] = a3, b3
    fours = weight.shape[0] // 4 * 4
    for b in range(rows, x.shape[0]):
        for o in range(0, fours, 4):
            a0, a1, a2, a3 = zero, zero, zero, zero
            for i in range(weight.shape[1]):
                a0 += np.float32(weight[o, i]) * x[b, i]
                a1 += np.float32(weight[o + 1, i]) * x[b, i]
                a2 += np.float32(weight[o + 2, i]) * x[b, i]
                a3 += np.float32(weight[o + 3, i]) * x[b, i]
            out[b, o], out[b, o + 1], out[b, o + 2], out[b, o + 3] = a0, a1, a2, a3
    for o in range(min(outputs, fours), weight.shape[0]):
        for b in range(rows if o < outputs else 0, x.shape[0]):
            total = zero
            for i in range(weight.shape[1]):
                total += np.float32(weight[o, i]) * x[b, i]
            out[b, o] = total
    for b in range(x.shape[0]):
        for o in range(weight.shape[0]):
            out[b, o] = out[b, o] * scale[o] + bias[o]


@_inner
def _copy(source, out):  # type: ignore[no-untyped-def]
    """out[i] = source[i]. Spelled out, as below: numba takes seconds to compile an assignment of whole arrays."""
    for i in range(out.shape[0]):
        out[i] = source[i]


@_inner
def _add(added, out):  # type: ignore[no-untyped-def]
    """out[b, i] += added[b, i]."""
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            out[b, i] += added[b, i]


@_inner
def _normalise(x, eps, out):  # type: ignore[no-untyped-def]
    """RMSNorm without weights of each row."""
    for b in range(x.shape[0]):
        total = np.float32(0)
        for i in range(x.shape[1]):
            total += x[b, i] * x[b, i]
        factor = np.float32(1 / np.sqrt(total / np.float32(x.shape[1]) + eps))
        for i in range(x.shape[1]):
            out[b, i] = x[b, i] * factor


@_inner
def _rotate(head, cosine, sine):  # type: ignore[no-untyped-def]
    """Turns the pairs (2 i, 2 i + 1) of one head in place."""
    for i in range(cosine.shape[0]):
        a, b = head[2 * i], head[2 * i + 1]
        head[2 * i] = a * cosine[i] - b * sine[i]
        head[2 * i + 1] = a * sine[i] + b * cosine[i]


@_inner
def _exp(x):  # type: ignore[no-untyped-def]
    """exp of a float32, within 2e-7 of it: the polynomial of the Cephes library, which compiles to vectors as libm's does not."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@_inner
def _attend(query, keys, values, count, scores, out):  # type: ignore[no-untyped-def]
    """softmax(query keys) values for one head; keys and values [E, P], of which the first ``count`` positions are seen.

    Inner loops run along positions, which are contiguous; four dimensions at a time (E is a multiple of four or ends one by one).
    """
    size = query.shape[0]
    fours = size // 4 * 4
    for p in range(count):
        scores[p] = np.float32(0)
    for e in range(0, fours, 4):
        a, b, c, d = query[e], query[e + 1], query[e + 2], query[e + 3]
        for p in range(count):
            scores[p] += a * keys[e, p] + b * keys[e + 1, p] + c * keys[e + 2, p] + d * keys[e + 3, p]
    for e in range(fours, size):
        for p in range(count):
            scores[p] += query[e] * keys[e, p]
    highest = np.float32(-3e38)
    for p in range(count):
        highest = max(highest, scores[p])
    whole = np.float32(0)
    for p in range(count):
        scores[p] = _exp(scores[p] - highest)
        whole += scores[p]
    zero = np.float32(0)
    for e in range(0, fours, 4):
        a, b, c, d = zero, zero, zero, zero
        for p in range(count):
            a += scores[p] * values[e, p]
            b += scores[p] * values[e + 1, p]
            c += scores[p] * values[e + 2, p]
            d += scores[p] * values[e + 3, p]
        out[e], out[e + 1], out[e + 2], out[e + 3] = a / whole, b / whole, c / whole, d / whole
    for e in range(fours, size):
        a = zero
        for p in range(count):
            a += scores[p] * values[e, p]
        out[e] = a / whole


@_inner
def _forward(tokens, positions, slots, w, cache, heads, eps):  # type: ignore[no-untyped-def]
    """Normalised hidden states [B, D] of one new token for each sequence; its keys and values go into the cache."""
    rows, groups, size = tokens.shape[0], cache.keys.shape[2], cache.keys.shape[3]
    width = w.down.shape[2]
    hidden = np.empty((rows, w.embedding.shape[1]), np.float32)
    for b in range(rows):
        _copy(w.embedding[tokens[b]], hidden[b])
    normed = np.empty_like(hidden)
    added = np.empty_like(hidden)
    qkv = np.empty((rows, w.qkv.shape[1]), np.float32)
    attended = np.empty((rows, heads * size), np.float32)
    wide = np.empty((rows, 2 * width), np.float32)
    gated = np.empty((rows, width), np.float32)
    scores = np.empty(cache.keys.shape[4], np.float32)
    for layer in range(w.qkv.shape[0]):
        _normalise(hidden, eps, normed)
        _product(normed, w.qkv[layer], w.qkv_scale[layer], w.qkv_bias[layer], qkv)
        for b in range(rows):
            by_head = qkv[b].reshape(-1, size)
            position, slot = positions[b], slots[b]
            if w.head_norms.shape[0] > 0:
                _normalise(by_head[: heads + groups], eps, by_head[: heads + groups])
                for h in range(heads + groups):
                    for e in range(size):
                        by_head[h, e] *= w.head_norms[layer, h, e]
            for h in range(heads + groups):
                _rotate(by_head[h], cache.cosines[position], cache.sines[position])
            for g in range(groups):
                for e in range(size):
                    cache.keys[layer, slot, g, e, position] = by_head[heads + g, e]
                    cache.values[layer, slot, g, e, position] = by_head[heads + groups + g, e]
            for h in range(heads):
                g = h * groups // heads
                own = attended[b, h * size : (h + 1) * size]
                _attend(by_head[h], cache.keys[layer, slot, g], cache.values[layer, slot, g], position + 1, scores, own)
        _product(attended, w.output[layer], w.output_scale[layer], w.output_bias[layer], added)
        _add(added, hidden)
        _normalise(hidden, eps, normed)
        _product(normed, w.gate_up[layer], w.gate_up_scale[layer], w.gate_up_bias[layer], wide)
        for b in range(rows):
            for f in range(width):
                gate = wide[b, f]
                gated[b, f] = gate / (np.float32(1) + _exp(-gate)) * wide[b, width + f]
        _product(gated, w.down[layer], w.down_scale[layer], w.down_bias[layer], added)
        _add(added, hidden)
    _normalise(hidden, eps, normed)
    return normed


@_inner
def _choose(logits, temperature, uniform, probabilities):  # type: ignore[no-untyped-def]
    """The next token of one sequence: argmax at temperature 0, else drawn where ``uniform`` falls in the cumulative sum.

    ``probabilities`` [V] receives what it was drawn from, if it has a place for it.
    """
    best = 0
    for v in range(logits.shape[0]):
        if logits[v] > logits[best]:
            best = v
    if temperature == 0:
        if probabilities.shape[0] > 0:
            for v in range(logits.shape[0]):
                probabilities[v] = 0
            probabilities[best] = 1
        return best
    whole, highest, sharpness = np.float32(0), logits[best], np.float32(1 / temperature)
    for v in range(logits.shape[0]):
        probabilities[v] = _exp((logits[v] - highest) * sharpness)
        whole += probabilities[v]
    for v in range(logits.shape[0]):
        probabilities[v] /= whole
    left = uniform
    for v in range(logits.shape[0]):
        left -= probabilities[v]
        if left < 0:
            return v
    return best


@njit(fastmath=True, cache=True, nogil=True)
def draft(new, starts, ends, slots, temperatures, uniforms, probabilities, w, cache, heads, eps):  # type: ignore[no-untyped-def]
    """Draft tokens [B, K] of all sequences.

    Args:
        new: int64, the tokens that are not in the cache yet, sequence after sequence; at least one each.
        starts: [B], the position of each sequence's first new token.
        ends: [B], the position after its last.
        slots: [B].
        temperatures: [B] float64, 0 is greedy.
        uniforms: [B, K] float64 in [0, 1).
        probabilities: [B, K, V] float32 to be filled, or with V = 0 where all sequences are greedy.
        w: the weights.
        cache: what is known of the sequences; new tokens and all draft tokens but the last are added.
        heads: query heads.
        eps: of the norms.
    """
    rows, count = uniforms.shape
    tokens, positions = np.empty(rows, np.int64), np.empty(rows, np.int64)
    place = 0
    for b in range(rows):
        for position in range(starts[b], ends[b] - 1):
            positions[b] = position
            _forward(new[place : place + 1], positions[b : b + 1], slots[b : b + 1], w, cache, heads, eps)
            place += 1
        tokens[b], positions[b] = new[place], ends[b] - 1
        place += 1
    chosen = np.empty((rows, count), np.int64)
    logits = np.empty((rows, w.head.shape[0]), np.float32)
    nothing = np.zeros(w.head.shape[0], np.float32)
    for step in range(count):
        hidden = _forward(tokens, positions, slots, w, cache, heads, eps)
        _product(hidden, w.head, w.head_scale, nothing, logits)
        for b in range(rows):
            tokens[b] = _choose(logits[b], temperatures[b], uniforms[b, step], probabilities[b, step])
            chosen[b, step] = tokens[b]
            positions[b] += 1
    return chosen


def compile_ahead() -> None:
    """Compiles ``draft`` for eight-bit weights, or fetches it from numba's cache: one token of a draft of the smallest shape."""

    def whole(*shape: int) -> Any:
        return np.zeros(shape, np.int8)

    def real(*shape: int) -> Any:
        return np.zeros(shape, np.float32)

    weights = Weights(
        embedding=real(2, 4), qkv=whole(1, 12, 4), qkv_scale=real(1, 12), qkv_bias=real(1, 12),
        head_norms=real(0, 2, 4), output=whole(1, 4, 4), output_scale=real(1, 4), output_bias=real(1, 4),
        gate_up=whole(1, 8, 4), gate_up_scale=real(1, 8), gate_up_bias=real(1, 8), down=whole(1, 4, 4),
        down_scale=real(1, 4), down_bias=real(1, 4), head=whole(2, 4), head_scale=real(2),
    )  # fmt: skip
    cache = Cache(real(1, 1, 1, 4, 2), real(1, 1, 1, 4, 2), real(2, 2), real(2, 2))
    places = np.zeros(1, np.int64)
    draft(
        places, places, places + 1, places, np.zeros(1), np.zeros((1, 1)), real(1, 1, 2), weights, cache, 1,
        np.float32(1e-5),
    )  # fmt: skip
