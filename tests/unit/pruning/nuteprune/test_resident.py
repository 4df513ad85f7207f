"""What the base wears: never part of its weights, in training or evaluation, until it is folded."""

import pytest
import torch

from pruning.calibration import Batch
from pruning.nuteprune.loss import Weights, learn, teach
from pruning.nuteprune.masks import Masks
from pruning.nuteprune.resident import INTACT, SEARCHED, Resident, Side

from .. import pico
from . import versions
from .versions import logits


def test_the_bare_base_is_the_intact_model():
    model = pico.LLAMA.model()
    expected = logits(model)
    resident = Resident(model, scale=2.0)
    with resident.wearing(INTACT):
        assert torch.equal(logits(model), expected)
    with resident.wearing(versions.side(resident)):
        assert not torch.allclose(logits(model), expected, atol=1e-2)
    assert torch.equal(logits(model), expected)  # and taken off again


def test_fresh_matrices_change_nothing_and_open_masks_neither():
    model = pico.LLAMA.model()
    expected = logits(model)
    resident = Resident(model, scale=2.0)
    fresh = resident.new_lora(SEARCHED, 4, torch.Generator().manual_seed(0))
    assert sorted({place.partition(".")[2] for place in fresh}) == ["self_attn.q_proj", "self_attn.v_proj"]
    with resident.wearing(Side(Masks(torch.ones(5, 2), torch.ones(5, 48), torch.ones(32)), fresh)):
        assert torch.equal(logits(model), expected)


def test_evaluation_and_training_see_the_same_and_write_no_base_weight():
    """The trap of LoRA libraries: switching to evaluation merges the matrices into the base that teachers share."""
    model = pico.LLAMA.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resident = Resident(model, scale=2.0)
    version = versions.side(resident)
    found = []
    for training in (True, False, True):
        model.train(training)
        with resident.wearing(version):
            found.append(logits(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name.replace(".base.", ".")]), name


def test_teacher_and_student_are_one_base_in_memory():
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    batch = Batch(pico.ids(), torch.ones(2, 12, dtype=torch.int64))
    used: dict[str, set[int]] = {"teacher": set(), "student": set()}
    who = "teacher"

    def see(module, args):
        used[who].update(p.data_ptr() for p in module.parameters(recurse=False))

    for module in resident.model.modules():
        module.register_forward_pre_hook(see)
    signal = teach(resident, versions.side(resident, seed=1).copied("cpu"), batch)
    who = "student"
    student = versions.side(resident, seed=2)
    loss, _ = learn(resident, student, batch, signal, Weights(0.9, 0.1, 2 / 3))
    loss.backward()
    assert used["teacher"] == used["student"]
    base = list(resident.model.parameters())
    assert {parameter.data_ptr() for parameter in base} >= used["teacher"]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base)
    assert all(matrix.grad is not None for pair in student.lora.values() for matrix in pair)


def test_a_copy_is_not_changed_by_later_steps():
    resident = Resident(pico.LLAMA.model(), scale=2.0)
    version = versions.side(resident)
    copied = version.copied("cpu")
    with torch.no_grad():
        version.lora["0.self_attn.q_proj"][0].zero_()
    assert copied.lora["0.self_attn.q_proj"][0].abs().sum() > 0
    assert not copied.lora["0.self_attn.q_proj"][0].requires_grad


@pytest.mark.parametrize("neuron_mask", ["gate_and_up", "product"])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("name", versions.NAMES)
def test_folding_keeps_the_logits_and_gives_the_plain_model_back(name, hidden, neuron_mask):
    model = versions.CASES[name].model()
    names = list(model.state_dict())
    resident = Resident(model, scale=2.0, neuron_mask=neuron_mask)
    version = versions.side(resident, hidden)
    with resident.wearing(version):
        expected = logits(model)
    folded = resident.fold(version)
    torch.testing.assert_close(logits(folded), expected, atol=1e-4, rtol=0)
    assert list(folded.state_dict()) == names
    assert (folded.lm_head.weight is folded.model.embed_tokens.weight) == folded.config.tie_word_embeddings


def test_a_masked_group_takes_its_query_heads_with_it():
    """Groups act before o_proj: what its columns see of a closed group is 0, of the others what they saw before."""
    resident = Resident(pico.LLAMA.model(), scale=1.0)
    seen = []
    output = resident.parts["0.self_attn.o_proj"].base
    output.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    groups = torch.ones(5, 2)
    groups[0, 1] = 0
    for masks in (Masks(torch.ones(5, 2), torch.ones(5, 48)), Masks(groups, torch.ones(5, 48))):
        with resident.wearing(Side(masks)):
            logits(resident.model)
    whole, cut = seen
    assert torch.equal(cut[..., :16], whole[..., :16])  # two query heads of 8 per group
    assert float(cut[..., 16:].abs().max()) == 0
