"""Which channels of an FFN matter: scores [F] of one layer, the higher the better, and the exact top-k of them.

A_i is the root mean square of channel i, the input of down_proj; Wd [D, F], Wg and Wu [F, D] are the weights of down_proj,
gate_proj and up_proj.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pruning.plan import Rows
from pruning.statistics import Statistics


@dataclass(frozen=True)
class Channels:
    """One layer's FFN as the criteria see it.

    Attributes:
        gate: Wg [F, D].
        up: Wu [F, D].
        down: Wd [D, F].
        activations: A [F], root mean square over tokens.
        variances: [F], over tokens.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    activations: torch.Tensor
    variances: torch.Tensor


def channels_of(layer: torch.nn.Module, found: Statistics, index: int) -> Channels:
    """One layer's weights, in fp32 on the CPU, with its statistics."""
    gate, up, down = (
        layer.get_parameter(f"mlp.{name}_proj.weight").detach().float().cpu() for name in ("gate", "up", "down")
    )
    return Channels(gate, up, down, found.activations[index].float(), found.variances[index].float())


def _share(weights: torch.Tensor) -> torch.Tensor:
    """|w| as a share of its row's sum: [rows, F], normalised across channels; a row of zeros stays zero."""
    sizes = weights.abs()
    return sizes / sizes.sum(dim=1, keepdim=True).clamp(min=torch.finfo(sizes.dtype).tiny)


def activation(ffn: Channels) -> torch.Tensor:
    """A_i alone: what the default of CFSP's released code comes to, because its norms cancel the weights."""
    return ffn.activations


def paper(ffn: Channels) -> torch.Tensor:
    """CFSP (arXiv 2409.13199), the fine-grained criterion: A_i times the mean over j of three shares of channel i.

    |Wd_ji| A_i as a share of its sum over channels, for each output j; |Wg_ij| and |Wu_ij| as shares over channels, for each
    input j. The paper's text does not settle which sum gate and up are divided by; dividing by the sum over j, as the
    released code does, would leave a constant.
    """
    shares = _share(ffn.down * ffn.activations) + _share(ffn.gate.T) + _share(ffn.up.T)
    return shares.mean(dim=0) * ffn.activations


def relative(ffn: Channels) -> torch.Tensor:
    """A_i times the mean over j of |Wd_ji|, |Wg_ij| and |Wu_ij|, each as a share of its sum over channels."""
    return (_share(ffn.down) + _share(ffn.gate.T) + _share(ffn.up.T)).mean(dim=0) * ffn.activations


def magnitude(ffn: Channels) -> torch.Tensor:
    """Norm of what is removed, without data: ||Wd_i||_2 of down_proj's column, as in the baselines of CFSP's comparison.

    The idea is that of arXiv 1608.08710, which ranks filters by the sum of their absolute weights.
    """
    return ffn.down.norm(dim=0)


def wanda_sp(ffn: Channels) -> torch.Tensor:
    """Wanda's |W_ji| ||X_i||_2 (arXiv 2306.11695, eq. 1), averaged over outputs j for structures (arXiv 2312.11983)."""
    return (ffn.down.abs() * ffn.activations).mean(dim=0)


def flap(ffn: Channels) -> torch.Tensor:
    """FLAP's fluctuation metric (arXiv 2312.11983, WIFV): Var(X_i) ||Wd_i||_2^2."""
    return ffn.variances * ffn.down.square().sum(dim=0)


CRITERIA: dict[str, Callable[[Channels], torch.Tensor]] = {
    "activation": activation, "paper": paper, "relative": relative,
    "magnitude": magnitude, "wanda_sp": wanda_sp, "flap": flap,
}  # fmt: skip
"""By name: CFSP's three, and each baseline's own."""


def strongest(scores: Sequence[torch.Tensor], widths: Sequence[int]) -> Rows:
    """Exactly as many channels of each layer as its width says, by score; of equal ones the first. Ascending."""
    kept = []
    for row, width in zip(scores, widths, strict=True):
        order = torch.sort(row, descending=True, stable=True).indices
        kept.append(tuple(sorted(order[:width].tolist())))
    return tuple(kept)


def down_bias(means: torch.Tensor, down: torch.Tensor, kept: Sequence[int]) -> list[float]:
    """FLAP's compensation of one layer (arXiv 2312.11983, eq. 6): sum over removed channels i of mean X_i times Wd_i.

    Args:
        means: [F], mean of each channel.
        down: [D, F].
        kept: channels that stay.
    """
    removed = torch.ones(len(means), dtype=torch.bool)
    removed[list(kept)] = False
    values: list[float] = (down[:, removed].double() @ means[removed].double()).float().tolist()
    return values
