"""What ranks channels, against slow references with loops; exact top-k."""

import math

import pytest
import torch

from pruning import criteria
from pruning.criteria import Channels, strongest

D, F = 3, 5


@pytest.fixture(scope="module")
def ffn() -> Channels:
    g = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(*shape, generator=g) for shape in ((F, D), (F, D), (D, F)))
    return Channels(gate, up, down, torch.rand(F, generator=g), torch.rand(F, generator=g))


def shares(weight, i: int) -> float:
    """Mean over j of |w(j, i)| as a share of its sum over channels."""
    return sum(abs(weight(j, i)) / sum(abs(weight(j, k)) for k in range(F)) for j in range(D)) / D


def slow(ffn: Channels, name: str, i: int) -> float:
    a = ffn.activations.tolist()
    down, gate, up = ffn.down.tolist(), ffn.gate.tolist(), ffn.up.tolist()
    others = shares(lambda j, k: gate[k][j], i) + shares(lambda j, k: up[k][j], i)
    column = [down[j][i] for j in range(D)]
    return {
        "activation": a[i],
        "paper": (shares(lambda j, k: down[j][k] * a[k], i) + others) * a[i],
        "relative": (shares(lambda j, k: down[j][k], i) + others) * a[i],
        "magnitude": math.sqrt(sum(w * w for w in column)),
        "wanda_sp": sum(abs(w) * a[i] for w in column) / D,
        "flap": ffn.variances.tolist()[i] * sum(w * w for w in column),
    }[name]


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_every_criterion_equals_its_slow_reference(ffn, name):
    expected = [slow(ffn, name, i) for i in range(F)]
    assert criteria.CRITERIA[name](ffn).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_row_of_zeros_makes_no_nan(ffn):
    dead = Channels(ffn.gate, ffn.up, torch.zeros(D, F), torch.zeros(F), ffn.variances)
    for criterion in criteria.CRITERIA.values():
        assert torch.isfinite(criterion(dead)).all()


def test_exactly_k_stay_whatever_the_ties():
    rows = [torch.tensor([0.1, 0.9, 0.9, 0.9, 0.5]), torch.zeros(5)]
    assert strongest(rows, [2, 3]) == ((1, 2), (0, 1, 2))
    assert strongest(rows, [5, 1]) == ((0, 1, 2, 3, 4), (0,))


def test_the_compensation_is_what_removed_channels_add_on_average(ffn):
    means = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0])
    expected = [ffn.down[j, 1] * -1.0 + ffn.down[j, 4] * 3.0 for j in range(D)]
    assert criteria.down_bias(means, ffn.down, (0, 2, 3)) == pytest.approx([float(x) for x in expected], rel=1e-5)
