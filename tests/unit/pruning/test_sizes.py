"""Parameter counts from a config against real models."""

import pytest

from pruning.sizes import sizes
from pruning.surgery import prune_depth
from pruning.width import narrow

from . import pico


@pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kept", [(0, 4), (2,), tuple(range(pico.LAYERS))])
def test_counts_equal_those_of_the_real_model(case, kept):
    model = prune_depth(case.model(), kept)
    counted = sizes(case.config(), kept)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.per_layer == sum(parameter.numel() for parameter in model.model.layers[0].parameters())
    assert counted.embeddings == counted.lm_head_work == model.model.embed_tokens.weight.numel()
    assert counted.lm_head == (0 if case.config().tie_word_embeddings else model.lm_head.weight.numel())
    assert counted.work == counted.total - counted.embeddings - counted.lm_head + counted.lm_head_work
    assert counted.bytes(2) == 2 * counted.total


def test_narrow_mlps_are_counted():
    model = narrow(prune_depth(pico.LLAMA.model(), (1,)), ((0, 5, 9),))
    assert sizes(pico.LLAMA.config(), (1,), 3).total == sum(parameter.numel() for parameter in model.parameters())


def test_published_sizes():
    """Llama-3.1-8B has 8.03 B parameters; 26 of its 32 layers leave 6.72 B (arXiv 2410.09982)."""
    shape = {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    }  # fmt: skip
    config = pico.LLAMA.config(**shape)
    assert round(sizes(config).total / 1e9, 2) == 8.03
    assert round(sizes(config, range(26)).total / 1e9, 2) == 6.72
