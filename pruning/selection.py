"""From scores to kept layers: pure functions of plain numbers. Kept layers are ascending indices, 0 … L-1."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stages.errors import InputError


def check_keep(num_layers: int, keep: int) -> int:
    """Returns ``keep`` when 1 <= keep <= num_layers.

    Raises:
        InputError: more layers removed than there are, or more kept.
    """
    if keep < 1:
        raise InputError(
            f"{num_layers - keep} of {num_layers} layers removed leaves {keep}; at least 1 must stay: "
            f"choose keep from 1 to {num_layers}"
        )
    if keep > num_layers:
        raise InputError(
            f"keep = {keep} (remove = {num_layers - keep}), but the target has {num_layers} layers; choose keep from 1 to "
            f"{num_layers}"
        )
    return keep


def first(num_layers: int, keep: int) -> tuple[int, ...]:
    """The first ``keep`` layers."""
    return tuple(range(check_keep(num_layers, keep)))


def first_and_last(num_layers: int, keep: int) -> tuple[int, ...]:
    """The first keep - 1 layers and the last one; keep = 1 is the first alone."""
    if check_keep(num_layers, keep) == 1:
        return (0,)
    return (*range(keep - 1), num_layers - 1)


def evenly_spaced(num_layers: int, keep: int) -> tuple[int, ...]:
    """``keep`` layers at equal distances, the first and the last among them; keep = 1 is the first alone."""
    if check_keep(num_layers, keep) == 1:
        return (0,)
    return tuple((2 * i * (num_layers - 1) + keep - 1) // (2 * (keep - 1)) for i in range(keep))


BASELINES: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "first": first,
    "first_and_last": first_and_last,
    "evenly_spaced": evenly_spaced,
}
"""Methods that look at the number of layers only."""


def explicit(num_layers: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Exactly these layers, in the model's order.

    Raises:
        InputError: none given, one given twice, or one that does not exist.
    """
    if not layers:
        raise InputError(f"no layers given; at least 1 of {num_layers} must stay")
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise InputError(f"layer {layer} does not exist; the target's layers are 0 to {num_layers - 1}")
        if list(layers).count(layer) > 1:
            raise InputError(f"layer {layer} is given twice; name each kept layer once")
    return tuple(sorted(layers))


def angular(distances: Sequence[Sequence[float]], keep: int) -> tuple[int, ...]:
    """Removes the contiguous span of L - keep layers whose two ends are nearest (l* of arXiv 2410.09982).

    Args:
        distances: [L+1][L+1], d(l, m) between the residual streams before layers l and m, in [0, 1].
        keep: layers to keep. On equal distances the earliest span goes.
    """
    num_layers = len(distances) - 1
    span = num_layers - check_keep(num_layers, keep)
    start = min(range(keep + 1), key=lambda layer: distances[layer][layer + span])
    return tuple(layer for layer in range(num_layers) if not start <= layer < start + span)


def block_influence(influences: Sequence[float], keep: int) -> tuple[int, ...]:
    """Keeps the layers of highest Block Influence (arXiv 2403.03853); on equal ones the earlier layer goes.

    Args:
        influences: [L], one per layer.
        keep: layers to keep.
    """
    check_keep(len(influences), keep)
    ranked = sorted(range(len(influences)), key=lambda layer: influences[layer])
    return tuple(sorted(ranked[len(influences) - keep :]))


def greedy_kl(num_layers: int, removed: Sequence[int], keep: int) -> tuple[int, ...]:
    """Keeps what a greedy removal left after L - keep steps.

    Args:
        num_layers: L.
        removed: layers in the order they were removed.
        keep: layers to keep.
    """
    steps = num_layers - check_keep(num_layers, keep)
    if steps > len(removed):
        raise InputError(
            f"the greedy scores stop at {num_layers - len(removed)} layers, but {keep} are to be kept; "
            f"score again with keep = {keep}"
        )
    return tuple(sorted(set(range(num_layers)) - set(removed[:steps])))
