"""The contract every family keeps after depth pruning."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from pruning import checkpoint
from pruning.families import family_of
from pruning.surgery import bypassed, prune_depth
from stages.errors import InputError

from . import pico

CASES = pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)
KEPT = (0, 2, 4)


@contextmanager
def masked(model: PreTrainedModel, removed: set[int]) -> Iterator[None]:
    """The reference for surgery: removed layers run, and their output is replaced by their input."""

    def undo(module, args, kwargs, output):
        return args[0] if args else kwargs["hidden_states"]

    handles = [
        layer.register_forward_hook(undo, with_kwargs=True)
        for index, layer in enumerate(model.model.layers)
        if index in removed
    ]
    yield
    for handle in handles:
        handle.remove()


def logits(model: PreTrainedModel, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=pico.ids(), use_cache=False, **kwargs).logits


@CASES
def test_masked_logits_equal_sliced_logits(case):
    model = case.model()
    with masked(model, {1, 3}):
        expected = logits(model)
    torch.testing.assert_close(logits(prune_depth(model, KEPT)), expected, atol=1e-4, rtol=0)
    with bypassed(model, {1, 3}):
        torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(logits(model), expected, atol=1e-2)  # and the bypass is undone


@CASES
def test_kept_weights_are_equal_and_the_model_stays_as_it_was(case):
    model = case.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_depth(model, KEPT).state_dict()
    assert sorted(before) == sorted(model.state_dict())
    for name, tensor in pruned.items():
        parts = name.split(".")
        if parts[1] == "layers":
            parts[2] = str(KEPT[int(parts[2])])
        assert torch.equal(tensor, before[".".join(parts)]), name
        assert torch.equal(model.state_dict()[".".join(parts)], before[".".join(parts)])
    assert len({name.split(".")[2] for name in pruned if ".layers." in name}) == len(KEPT)


@CASES
def test_layer_indices_and_config_lists_follow(case):
    model = case.model()
    pruned = prune_depth(model, KEPT)
    assert [layer.self_attn.layer_idx for layer in pruned.model.layers] == [0, 1, 2]
    assert pruned.config.num_hidden_layers == len(pruned.model.layers) == 3
    if (types := getattr(model.config, "layer_types", None)) is not None:
        assert pruned.config.layer_types == [types[layer] for layer in KEPT]
        windows = [getattr(layer.self_attn, "sliding_window", None) for layer in pruned.model.layers]
        if case.config_class.model_type != "mistral":
            assert windows == [4 if types[layer] == "sliding_attention" else None for layer in KEPT]
    assert model.config.num_hidden_layers == pico.LAYERS


@CASES
def test_tied_embeddings_stay_tied(case):
    pruned = prune_depth(case.model(), KEPT)
    shared = pruned.lm_head.weight is pruned.model.embed_tokens.weight
    assert shared == pruned.config.tie_word_embeddings == case.config().tie_word_embeddings


@CASES
def test_saved_and_loaded_gives_the_same_logits(case, tmp_path: Path):
    model = case.model()
    source = pico.save(model, tmp_path / "target")
    pruned = prune_depth(model, KEPT)
    checkpoint.save_checkpoint(pruned, source, tmp_path / "pruned")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), logits(pruned), atol=0, rtol=0)
    torch.testing.assert_close(logits(checkpoint.load_layers(source, KEPT)), logits(pruned), atol=0, rtol=0)


@CASES
def test_generating_with_cache_equals_without(case):
    pruned = prune_depth(case.model(), KEPT)
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    prompt = {"input_ids": pico.ids(), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    with_cache = pruned.generate(**prompt, use_cache=True, **options)
    assert with_cache.shape == (2, 28)
    assert torch.equal(with_cache, pruned.generate(**prompt, use_cache=False, **options))


@CASES
def test_keeping_every_layer_changes_nothing(case):
    model = case.model()
    torch.testing.assert_close(logits(prune_depth(model, range(pico.LAYERS))), logits(model), atol=0, rtol=0)


def test_the_order_of_the_model_is_kept_and_random_state_untouched():
    model = pico.LLAMA.model()
    torch.manual_seed(3)
    pruned = prune_depth(model, (4, 0))
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(3))
    assert torch.equal(pruned.model.layers[1].mlp.up_proj.weight, model.model.layers[4].mlp.up_proj.weight)


def test_bf16_weights_stay_bf16_and_exact():
    model = pico.LLAMA.model().bfloat16()
    pruned = prune_depth(model, (1,))
    assert {parameter.dtype for parameter in pruned.parameters()} == {torch.bfloat16}
    assert torch.equal(pruned.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("kept", "said"), [((), "at least 1"), ((5,), "layers are 0 to 4"), ((1, 1), "twice"), ((-1,), "-1")]
)
def test_impossible_layers_are_refused(kept, said):
    with pytest.raises(InputError, match=said):
        prune_depth(pico.LLAMA.model(), kept)


def test_a_bypass_is_undone_after_an_error():
    model = pico.LLAMA.model()
    before = list(model.model.layers)
    with pytest.raises(KeyboardInterrupt), bypassed(model, [1, 2]):
        raise KeyboardInterrupt
    assert list(model.model.layers) == before
    assert family_of(model.config).layers_of(model) is model.model.layers
