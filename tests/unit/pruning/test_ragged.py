"""The contract every family keeps when its layers get shapes of their own: masked == sliced == reloaded."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from pruning import checkpoint
from pruning.families import family_of
from pruning.plan import WidthPlan
from pruning.prune import prune, prune_by_plan
from pruning.settings import PruneSettings
from pruning.sizes import sizes
from pruning.surgery import prune_depth
from pruning.width import carry_out
from stages.errors import InputError
from stages.hashing import checkpoint_hash

from . import pico
from .pico import GROUPS, WIDTHS, a_plan

CASES = pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)


def masked(model: PreTrainedModel, plan: WidthPlan) -> PreTrainedModel:
    """The reference: everything still runs, but what a plan removes reaches nothing."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            removed = [i for i in range(48) if i not in plan.kept_channels[index]]
            layer.mlp.down_proj.weight[:, removed] = 0
            for group in {0, 1} - set((plan.kept_groups or [(0, 1)] * pico.LAYERS)[index]):
                columns = 2 * layer.self_attn.head_dim
                layer.self_attn.o_proj.weight[:, group * columns : (group + 1) * columns] = 0
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.ids(), use_cache=False).logits


@CASES
def test_masked_equals_sliced_equals_reloaded(case, tmp_path: Path):
    model = case.model()
    sliced = carry_out(model, a_plan())
    torch.testing.assert_close(logits(sliced), logits(masked(model, a_plan())), atol=1e-4, rtol=0)
    checkpoint.save_checkpoint(sliced, pico.save(model, tmp_path / "target"), tmp_path / "out")
    reloaded = checkpoint.load_model(tmp_path / "out")
    assert type(reloaded) is type(sliced)
    torch.testing.assert_close(logits(reloaded), logits(sliced), atol=0, rtol=0)
    assert (sliced.lm_head.weight is sliced.model.embed_tokens.weight) == case.config().tie_word_embeddings
    assert [layer.mlp.down_proj.in_features for layer in reloaded.model.layers] == list(WIDTHS)
    assert [layer.self_attn.k_proj.out_features for layer in reloaded.model.layers] == [
        len(groups) * sliced.config.head_dim for groups in GROUPS
    ]
    counted = sizes(reloaded.config)
    assert counted.total == sum(parameter.numel() for parameter in reloaded.parameters())


@CASES
def test_generating_with_cache_equals_without(case):
    sliced = carry_out(case.model(), a_plan())
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = {"input_ids": pico.ids(), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    with_cache = sliced.generate(**prompt, use_cache=True, **options)
    assert torch.equal(with_cache, sliced.generate(**prompt, use_cache=False, **options))


@CASES
def test_a_uniform_width_is_a_plain_model(case, tmp_path: Path):
    model = case.model()
    plan = a_plan(export="uniform", kept_channels=(tuple(range(3, 19)),) * pico.LAYERS, kept_groups=None)
    narrow = carry_out(model, plan)
    assert type(narrow) is type(model)
    torch.testing.assert_close(logits(narrow), logits(masked(model, plan)), atol=1e-4, rtol=0)


def test_a_ragged_model_can_lose_layers_and_its_config_travels():
    ragged = carry_out(pico.LLAMA.model(), a_plan())
    draft = prune_depth(ragged, (0, 3))
    assert draft.config.layer_intermediate_sizes == [20, 33]
    assert draft.config.layer_key_value_heads == [2, 2]
    assert sizes(ragged.config, (0, 3)).total == sum(parameter.numel() for parameter in draft.parameters())
    for before, after in zip((0, 3), draft.model.layers, strict=True):
        weight = ragged.model.layers[before].mlp.up_proj.weight
        assert torch.equal(after.mlp.up_proj.weight, weight)
    again = pickle.loads(pickle.dumps(ragged.config))  # engines send it from process to process
    assert again.of_layer(1).intermediate_size == 7
    assert again.of_layer(1).num_attention_heads == 2


def test_the_attention_can_be_switched_later():
    ragged = carry_out(pico.LLAMA.model(), a_plan())
    before = logits(ragged)
    ragged.set_attn_implementation("eager")
    assert {layer.self_attn.config._attn_implementation for layer in ragged.model.layers} == {"eager"}
    torch.testing.assert_close(logits(ragged), before, atol=1e-4, rtol=0)


def test_a_plan_of_groups_is_replayed_on_disk_and_refused_elsewhere(tmp_path: Path):
    target = pico.save(pico.CASES[-1].model(), tmp_path / "target")
    a_plan(target_sha256=checkpoint_hash(target), method="magnitude").save(tmp_path / "plan.json")
    prune_by_plan(target, tmp_path / "plan.json", tmp_path / "out")
    model = checkpoint.load_model(tmp_path / "out")
    assert family_of(model.config).ragged
    torch.testing.assert_close(
        logits(model), logits(carry_out(checkpoint.load_model(target), a_plan())), atol=0, rtol=0
    )
    prune(tmp_path / "out", tmp_path / "draft", PruneSettings(layers=(1, 2)))
    assert checkpoint.load_model(tmp_path / "draft").config.layer_attention_heads == [2, 2]
    with pytest.raises(InputError, match="made for the target any"):
        a_plan().save(tmp_path / "other.json")
        prune_by_plan(target, tmp_path / "other.json", tmp_path / "no")


def test_plans_that_do_not_fit_the_model_are_refused():
    wide = pico.LLAMA.model(intermediate_size=64)
    with pytest.raises(InputError, match=r"the plan is for .*'num_channels': 48.*the target has .*64"):
        carry_out(wide, a_plan())
    ragged = carry_out(pico.LLAMA.model(), a_plan())
    with pytest.raises(InputError, match="narrowing needs a model whose layers have one shape"):
        carry_out(ragged, a_plan())
    even = {"kept_channels": (tuple(range(8)),) * pico.LAYERS, "export": "uniform"}
    three = pico.LLAMA.model(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    groups = {"num_groups": 4, "kept_groups": ((0, 1, 3),) * pico.LAYERS}
    with pytest.raises(InputError, match="cannot have 6 heads at a hidden size of 32"):
        carry_out(three, a_plan(**even, **groups))
    qwen2 = next(case for case in pico.CASES if case.name == "qwen2-tied").model()
    with pytest.raises(InputError, match="plain Qwen2ForCausalLM takes its heads' width from their number"):
        carry_out(qwen2, a_plan(**even, kept_groups=((1,),) * pico.LAYERS))
    with pytest.raises(InputError, match="Qwen2ForCausalLM has no bias in its FFNs"):
        carry_out(qwen2, a_plan(down_bias=((0.0,) * 32,) * pico.LAYERS))
    with pytest.raises(InputError, match="down_bias must have 32 entries for each layer"):
        carry_out(pico.LLAMA.model(), a_plan(down_bias=((0.0,),) * pico.LAYERS))


def test_a_uniform_number_of_groups_is_a_plain_model_where_there_is_one():
    model = pico.CASES[-1].model()
    kept = {"kept_channels": (tuple(range(8)),) * pico.LAYERS, "kept_groups": ((1,), (0,), (1,), (1,), (0,))}
    plan = a_plan(export="uniform", **kept)
    narrow = carry_out(model, plan)
    assert type(narrow) is type(model)
    assert (narrow.config.num_attention_heads, narrow.config.num_key_value_heads) == (2, 1)
    torch.testing.assert_close(logits(narrow), logits(masked(model, plan)), atol=1e-4, rtol=0)


def test_a_mistral_with_windows_in_some_layers_stays_one(tmp_path):
    """transformers reads a Mistral with layer_types as a Ministral; its ragged form is that of a Ministral."""
    case = next(case for case in pico.CASES if case.name == "ministral-mixed")
    target = pico.save(case.model(), tmp_path / "target")
    pico.edit_config(target, architectures=["MistralForCausalLM"], model_type="mistral")
    model, plan = case.model(), a_plan(target_sha256=checkpoint_hash(target), method="cfsp")
    plan.save(tmp_path / "plan.json")
    prune_by_plan(target, tmp_path / "plan.json", tmp_path / "out")
    torch.testing.assert_close(
        logits(checkpoint.load_model(tmp_path / "out")), logits(masked(model, plan)), atol=1e-4, rtol=0
    )
