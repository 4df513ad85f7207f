"""The student's loss against a slow reference."""

import pytest
import torch
from torch.nn import functional

from pruning.calibration import Batch, pad
from pruning.nuteprune.loss import Signal, Weights, check, head_kl, learn, learn_text, teach
from pruning.nuteprune.resident import INTACT, Resident, Side
from stages.errors import InputError

from .. import pico
from . import versions

WEIGHTS = Weights(hidden=0.9, kl=0.1, temperature=2 / 3)
IDS = pico.ids(2, 9)
BATCH = Batch(IDS, torch.ones_like(IDS))


@pytest.mark.parametrize("num_tokens", [1, 300])
def test_the_divergence_and_its_gradient_equal_the_formula(num_tokens):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(num_tokens, 8, generator=generator) for _ in range(2))
    weight = torch.randn(40, 8, generator=generator)
    found, slow = (student.clone().requires_grad_() for _ in range(2))
    head_kl(found, teacher, weight, 2 / 3).mul(3).backward()
    log_q = functional.log_softmax(slow @ weight.T / (2 / 3), -1)
    p = functional.softmax(teacher @ weight.T / (2 / 3), -1)
    reference = (p * (p.log() - log_q)).sum(-1).mean()
    reference.mul(3).backward()
    assert float(head_kl(student, teacher, weight, 2 / 3)) == pytest.approx(float(reference.detach()), rel=1e-4)
    assert found.grad is not None
    torch.testing.assert_close(found.grad, slow.grad, atol=1e-5, rtol=1e-4)


def whole_pass(resident: Resident, side: Side) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Each layer's output and all logits, from hooks of its own."""
    states: list[torch.Tensor] = []
    layers = resident.model.model.layers
    handles = [layer.register_forward_hook(lambda _, __, output: states.append(output)) for layer in layers]
    with resident.wearing(side) as model, torch.no_grad():
        logits = model(input_ids=BATCH.input_ids).logits
    for handle in handles:
        handle.remove()
    return states, logits


def slow_loss(resident: Resident, version: Side) -> float:
    """0.9 * sum over layers of MSE + 0.1 * T^2 * KL, on whole logits."""
    (taught, wanted), (learned, given) = (whole_pass(resident, side) for side in (INTACT, version))
    total = sum(float(functional.mse_loss(a, b)) for a, b in zip(learned, taught, strict=True))
    log_p, log_q = (functional.log_softmax(one / (2 / 3), -1) for one in (wanted, given))
    kl = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    return 0.9 * total + 0.1 * (2 / 3) ** 2 * float(kl)


@pytest.mark.parametrize("hidden", [False, True])
def test_the_loss_equals_its_formula(hidden):
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    version = versions.side(resident, hidden)
    signal = teach(resident, INTACT, BATCH)
    assert len(signal.hidden) == pico.LAYERS
    loss, parts = learn(resident, version, BATCH, signal, WEIGHTS)
    assert float(loss.detach()) == pytest.approx(slow_loss(resident, version), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(0.9 * parts["hidden"] + 0.1 * 4 / 9 * parts["kl"], rel=1e-4)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    version = versions.side(resident)
    loss, _ = learn(resident, version, BATCH, teach(resident, version.copied("cpu"), BATCH), WEIGHTS)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("relative", [False, True])
def test_padding_changes_nothing(relative):
    """One long and one short sequence together weigh as their tokens do."""
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    version, weights = versions.side(resident), Weights(0.9, 0.1, 2 / 3, relative)
    sequences = [IDS[0].tolist(), IDS[1, :4].tolist()]
    parts = []
    for batch in (pad(sequences), *(pad([one]) for one in sequences)):
        parts.append(learn(resident, version, batch, teach(resident, INTACT, batch), weights)[1])
    both, long, short = parts
    assert both["kl"] == pytest.approx((9 * long["kl"] + 4 * short["kl"]) / 13, rel=1e-4)
    if not relative:
        assert both["hidden"] == pytest.approx((9 * long["hidden"] + 4 * short["hidden"]) / 13, rel=1e-4)
    text = [
        float(learn_text(resident, version, batch)[0].detach())
        for batch in (pad(sequences), *(pad([one]) for one in sequences))
    ]
    assert text[0] == pytest.approx((8 * text[1] + 3 * text[2]) / 11, rel=1e-4)


def test_a_loss_that_is_not_a_number_names_its_layer():
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    signal = teach(resident, INTACT, BATCH)
    signal.hidden[3][0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="the loss of layer 3 is not a number"):
        learn(resident, versions.side(resident), BATCH, signal, WEIGHTS)
    broken = Signal(teach(resident, INTACT, BATCH).hidden, signal.states * float("nan"))
    with pytest.raises(InputError, match="the divergence is not a number, first in the head or the teacher; check"):
        learn(resident, versions.side(resident), BATCH, broken, WEIGHTS)


@pytest.mark.parametrize("loss", ["divergence", "cross-entropy"])
def test_without_hidden_states_a_layer_that_computes_nan_is_named_too(loss):
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    signal = teach(resident, INTACT, BATCH, hidden=False)
    with torch.no_grad():
        resident.model.model.layers[2].input_layernorm.weight[0] = float("nan")
    with pytest.raises(InputError, match=f"the {loss} is not a number, first in layer 2; check"):
        if loss == "divergence":
            learn(resident, INTACT, BATCH, signal, Weights(hidden=0.0, kl=1.0, temperature=1.0))
        else:
            learn_text(resident, INTACT, BATCH)


def test_the_check_finds_no_divergence_from_oneself():
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    same = check(resident, INTACT, [BATCH])
    assert same == {"kl": pytest.approx(0, abs=1e-6), "agreement": 1.0, "tokens": 18}
    assert check(resident, versions.side(resident), [BATCH])["kl"] > 0.01
    assert check(resident, INTACT, []) == {}
