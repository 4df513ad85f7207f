"""Muon in float32 is torch's own, but for what bfloat16 rounds."""

from __future__ import annotations

import pytest
import torch

from drafts.muon import Float32Muon, orthogonalised

COEFFICIENTS = (3.4445, -4.775, 2.0315)


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    turned = left.mT @ orthogonalised(gradient, COEFFICIENTS, 5, 1e-7) @ right.mT
    torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-4, rtol=0)
    assert values.max() / values.min() > 2.5
    assert turned.diagonal().min() > 0.3
    assert turned.diagonal().max() < 1.3


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_are_torchs_own(nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    begin = [torch.randn(48, 16, generator=generator), torch.randn(16, 48, generator=generator)]
    gradients = [[torch.randn(w.shape, generator=generator) for w in begin] for _ in range(4)]
    ends = []
    for optimizer in (torch.optim.Muon, Float32Muon):
        weights = [torch.nn.Parameter(w.clone()) for w in begin]
        made = optimizer(weights, lr=0.05, weight_decay=0.1, nesterov=nesterov)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            made.step()
        ends.append([w.detach() for w in weights])
    for theirs, ours, start in zip(*ends, begin, strict=True):
        assert (theirs - ours).norm() < 0.02 * (theirs - start).norm()


def test_its_state_is_torchs_own() -> None:
    weight = torch.nn.Parameter(torch.eye(4))
    weight.grad = torch.ones(4, 4)
    ours = Float32Muon([weight], lr=0.1)
    ours.step()
    theirs = torch.optim.Muon([weight], lr=0.1)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state[weight]["momentum_buffer"].equal(ours.state[weight]["momentum_buffer"])
