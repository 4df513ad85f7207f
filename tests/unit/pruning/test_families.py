"""The adapter: what it knows and what it refuses."""

import pytest

from pruning.families import FAMILIES, cut_config, family_of
from pruning.surgery import pruned_config
from stages.errors import InputError

from . import pico


def test_known_families_are_found_by_architecture_or_type():
    for architecture, family in FAMILIES.items():
        assert family_of({"architectures": [architecture]}) is family
        assert family_of({"model_type": family.model_type}) is family


@pytest.mark.parametrize("values", [{"architectures": ["GPT2LMHeadModel"]}, {"model_type": "GPT2LMHeadModel"}])
def test_an_unknown_architecture_is_refused_by_name_with_the_known_ones(values):
    with pytest.raises(InputError, match=r"GPT2LMHeadModel; known are Llama.*Mistral.*Qwen2.*Qwen3"):
        family_of(values, "here")


def test_a_reward_model_is_not_taken_for_a_language_model():
    with pytest.raises(InputError, match="LlamaForSequenceClassification"):
        family_of({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"})


@pytest.mark.parametrize("key", ["quantization_config", "per_layer_config"])
def test_weights_that_surgery_cannot_cut_are_refused(key):
    with pytest.raises(InputError, match="cannot be pruned"):
        family_of({"model_type": "llama", key: {"any": "thing"}})


def test_weight_names_move_with_their_layers():
    family = FAMILIES["LlamaForCausalLM"]
    assert family.rename("model.layers.11.mlp.up_proj.weight", (1, 11)) == "model.layers.1.mlp.up_proj.weight"
    assert family.rename("model.layers.1.mlp.up_proj.weight", (1, 11)) == "model.layers.0.mlp.up_proj.weight"
    assert family.rename("model.layers.10.mlp.up_proj.weight", (1, 11)) is None
    assert family.rename("model.norm.weight", (1, 11)) == "model.norm.weight"


def test_every_list_of_layers_is_cut_and_nothing_else():
    values = {
        "num_hidden_layers": 4, "layer_types": list("abcd"), "no_rope_layers": [1, 1, 0, 1], "max_window_layers": 2,
        "eos_token_id": [1, 2, 3, 4], "rope_parameters": {"long_factor": [1.0] * 4},
    }  # fmt: skip
    assert cut_config(values, (1, 3)) == {
        **values, "num_hidden_layers": 2, "layer_types": ["b", "d"], "no_rope_layers": [1, 1], "max_window_layers": 1,
    }  # fmt: skip
    assert values["layer_types"] == list("abcd")


def test_a_list_of_another_length_is_refused_by_name():
    with pytest.raises(InputError, match="sparse_layers: 1 entries for 4 layers"):
        cut_config({"num_hidden_layers": 4, "sparse_layers": [2]}, (0,))


def test_the_cut_config_survives_saving(tmp_path):
    config = next(case for case in pico.CASES if case.name == "qwen3-tied").config()
    cut = pruned_config(config, (0, 4))
    cut.save_pretrained(tmp_path)
    loaded = type(config).from_pretrained(tmp_path)
    assert loaded.layer_types == ["full_attention", "sliding_attention"]
    assert (loaded.num_hidden_layers, loaded.max_window_layers, loaded.head_dim) == (2, 1, 16)
