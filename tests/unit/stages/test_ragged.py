"""What a ragged config says, and the plain one that it becomes when its layers are filled up."""

import re
from typing import Any

import pytest

from stages.ragged import filled_up, is_ragged, shapes, zeros

PLAIN: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 5.0,
}  # fmt: skip
RAGGED = {
    **PLAIN, "model_type": "understudy_ragged_llama", "architectures": ["UnderstudyRaggedLlamaForCausalLM"], "head_dim": 8,
    "layer_intermediate_sizes": [20, 7, 33],
}  # fmt: skip
HEADS = {"layer_attention_heads": [4, 2, 2], "layer_key_value_heads": [2, 1, 1]}


def test_a_ragged_config_is_known_by_its_type() -> None:
    assert is_ragged(RAGGED)
    assert not is_ragged(PLAIN)
    assert not is_ragged({})


def test_shapes_are_the_lists_or_the_same_for_all_layers() -> None:
    assert shapes(RAGGED) == [(20, 4, 2), (7, 4, 2), (33, 4, 2)]
    assert shapes({**RAGGED, **HEADS}) == [(20, 4, 2), (7, 2, 1), (33, 2, 1)]
    assert shapes({**RAGGED, "num_key_value_heads": None}) == [(20, 4, 4), (7, 4, 4), (33, 4, 4)]


@pytest.mark.parametrize("heads", [{}, HEADS])
def test_filled_up_it_is_plain_with_the_widest_ffn_and_all_heads(heads: dict[str, list[int]]) -> None:
    assert filled_up({**RAGGED, **heads}) == {**PLAIN, "intermediate_size": 33, "head_dim": 8}


def test_old_configs_without_key_value_heads_are_read() -> None:
    old = {key: value for key, value in RAGGED.items() if key not in ("num_key_value_heads", "head_dim")}
    assert (filled_up(old)["num_key_value_heads"], filled_up(old)["head_dim"]) == (4, 8)


def test_the_zeros_are_counted() -> None:
    ffn = 3 * 32 * (13 + 26)
    group = 32 * 8 * (2 * 2 + 2)  # two query heads with their columns of o_proj, keys and values
    assert zeros(RAGGED) == ffn
    assert zeros({**RAGGED, **HEADS}) == ffn + 2 * group


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layer_intermediate_sizes": [20, 7]}, "one entry for each of 3 layers is needed"),
        ({**HEADS, "layer_attention_heads": [4, 4, 2]}, "not whole groups of 2 query heads, 2 at most"),
        (
            {"layer_attention_heads": [8] * 3, "layer_key_value_heads": [4] * 3},
            "not whole groups of 2 query heads, 2 at most",
        ),
    ],
)
def test_what_cannot_be_filled_up_is_refused(change: dict[str, list[int]], reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        filled_up({**RAGGED, **change})
