"""The draft network computes what transformers computes, however its tokens come in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from pruning.checkpoint import save_checkpoint
from pruning.width import carry_out
from server.drafting import unsupported
from server.in_engine.draft_network import DraftNetwork
from tests.unit.pruning.pico import CASES, LLAMA, Pico, a_plan, ids, save

RUN = [case for case in CASES if unsupported(case.config().to_dict()) is None]
REFUSED = [case for case in CASES if case not in RUN]


def pico(case: Pico, folder: Path) -> tuple[DraftNetwork, Tensor]:
    """A network of the case, and transformers' logits [3, 20, vocabulary] for ``ids(3, 20)``."""
    save(case.model(), folder)
    network = DraftNetwork(folder)
    network.reserve(4, 40)
    with torch.no_grad():
        return network, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids(3, 20)).logits


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def next_probabilities(network: DraftNetwork, new: list[list[int]], starts: list[int], slots: list[int]) -> Tensor:
    """What the native steps draw the first draft token of each sequence from, at temperature 1."""
    found = network.draft(new, starts, slots, [1.0] * len(new), numpy.zeros((len(new), 1)))[1]
    assert found is not None
    return found[:, 0]


def test_the_cases_cover_all_families() -> None:
    assert {case.config().model_type for case in RUN} == {"llama", "mistral", "qwen2", "qwen3"}
    assert REFUSED


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_chunks_give_the_logits_of_transformers(case: Pico, tmp_path: Path) -> None:
    network, expected = pico(case, tmp_path)
    tokens = ids(3, 20)
    for row, slot in enumerate((3, 0, 1)):
        parts = [network.states(tokens[row, a:b].tolist(), a, slot) for a, b in ((0, 7), (7, 8), (8, 20))]
        same(network.logits(torch.cat(parts)), expected[row])


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_native_steps_give_the_probabilities_of_transformers(case: Pico, tmp_path: Path) -> None:
    network, logits = pico(case, tmp_path)
    expected, tokens = torch.softmax(logits, -1), ids(3, 20).tolist()
    for row, length in enumerate((5, 12, 0)):
        if length:
            network.read(tokens[row][:length], 0, row + 1)
    new = [tokens[0][5:8], tokens[1][12:13], tokens[2][:6]]
    got = next_probabilities(network, new, [5, 12, 0], [1, 2, 3])
    same(got, torch.stack([expected[0, 7], expected[1, 12], expected[2, 5]]))
    same(next_probabilities(network, [tokens[2][6:7]], [6], [3]), expected[2:, 6])
    same(network.logits(network.states(tokens[2][7:], 7, 3)), logits[2, 7:])  # chunks read what steps wrote


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_layers_of_their_own_shapes_give_what_transformers_gives(case: Pico, tmp_path: Path) -> None:
    ragged = carry_out(case.model(), a_plan())
    save_checkpoint(ragged, save(case.model(), tmp_path / "target"), tmp_path / "draft")
    state = torch.random.get_rng_state()
    network, tokens = DraftNetwork(tmp_path / "draft"), ids(3, 20)
    assert torch.equal(torch.random.get_rng_state(), state), "loading a draft draws no numbers of the engine's"
    network.reserve(3, 40)
    with torch.no_grad():
        expected = ragged(tokens).logits
    same(network.logits(network.states(tokens[0].tolist(), 0, 0)), expected[0])
    network.read(tokens[1, :12].tolist(), 0, 1)
    got = next_probabilities(network, [tokens[1, 12:].tolist(), tokens[2].tolist()], [12, 0], [1, 2])
    same(got, torch.softmax(expected[1:, 19], -1))
    rounded = DraftNetwork(tmp_path / "draft", eight_bit=True)
    rounded.reserve(1, 40)
    near = torch.softmax(rounded.logits(rounded.states(tokens[0].tolist(), 0, 0)), -1)
    assert 0 < 0.5 * (near - torch.softmax(expected[0], -1)).abs().sum(-1).max() < 0.1


def test_layers_may_all_have_fewer_heads_than_a_plain_model_of_that_width_could(tmp_path: Path) -> None:
    case = Pico("eight-heads", LlamaConfig, {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8})
    kept = ((0, 3, 5), (1, 2), (7,), (0, 1, 2), (4,))  # 32 dimensions are no multiple of three heads
    ragged = carry_out(case.model(), a_plan(num_groups=8, kept_groups=kept))
    save_checkpoint(ragged, save(case.model(), tmp_path / "target"), tmp_path / "draft")
    network = DraftNetwork(tmp_path / "draft")
    network.reserve(1, 40)
    with torch.no_grad():
        same(network.logits(network.states(ids(1, 20)[0].tolist(), 0, 0)), ragged(ids(1, 20)).logits[0])


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_ragged_model_is_refused_for_what_its_family_is_refused_for(case: Pico) -> None:
    reason = str(unsupported(carry_out(case.model(), a_plan()).config.to_dict()))
    assert "sliding-window" in reason or "'ministral' is none of" in reason


@pytest.mark.parametrize(
    ("name", "cut", "reason"),
    [
        ("model.norm.weight", None, r"model\.norm\.weight is missing \(1 in all\)"),
        (
            "model.layers.1.mlp.up_proj.weight",
            slice(5),
            r"up_proj\.weight is \[5, 32\], but config\.json asks for \[7, 32\]",
        ),
        ("model.layers.0.self_attn.k_proj.weight", slice(8), r"k_proj\.weight is \[8, 32\], .* asks for \[16, 32\]"),
        ("model.layers.2.mlp.down_proj.weight", slice(31), r"down_proj\.weight is \[31, 48\], .* asks for \[32, 48\]"),
    ],
)
def test_a_ragged_draft_whose_weights_are_not_what_its_config_says_is_refused(
    name: str, cut: slice | None, reason: str, tmp_path: Path
) -> None:
    save_checkpoint(carry_out(LLAMA.model(), a_plan()), save(LLAMA.model(), tmp_path / "target"), tmp_path / "draft")
    weights = load_file(tmp_path / "draft" / "model.safetensors")
    whole = weights.pop(name)
    if cut is not None:
        weights[name] = whole[cut].contiguous()
    save_file(weights, tmp_path / "draft" / "model.safetensors")
    with pytest.raises(ValueError, match=reason):
        DraftNetwork(tmp_path / "draft")


def test_tokens_are_drawn_where_the_number_falls_in_the_cumulative_sum(tmp_path: Path) -> None:
    network, logits = pico(LLAMA, tmp_path)
    tokens = ids(3, 20).tolist()
    cumulative = torch.softmax(logits[0, 19].double() / 0.5, -1).cumsum(-1)
    network.read(tokens[0][:19], 0, 0)
    for number in (0.0, 0.1, 0.5, 0.9, 0.999):
        chosen, _ = network.draft([tokens[0][19:]], [19], [0], [0.5], numpy.array([[number]]))
        assert chosen[0][0] == int((cumulative <= number).sum())
    chosen, found = network.draft([tokens[0][19:]] * 2, [19, 19], [0, 1], [0.0, 1.0], numpy.zeros((2, 3)))
    assert found is not None
    same(found.sum(-1), torch.ones(2, 3))
    assert [found[0, step].argmax() for step in range(3)] == chosen[0]
    assert found[0].max() == 1.0


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_eight_bits_are_near_and_steps_and_chunks_round_alike(case: Pico, tmp_path: Path) -> None:
    _, logits = pico(case, tmp_path)
    network = DraftNetwork(tmp_path, eight_bit=True)
    network.reserve(2, 40)
    tokens = ids(3, 20)[0].tolist()
    rounded = torch.softmax(network.logits(network.states(tokens, 0, 0)), -1)
    expected = torch.softmax(logits[0], -1)
    assert 0 < 0.5 * (rounded - expected).abs().sum(-1).max() < 0.1
    network.read(tokens[:12], 0, 1)
    same(next_probabilities(network, [tokens[12:]], [12], [1]), rounded[19:])


def test_a_growing_cache_keeps_what_is_in_it(tmp_path: Path) -> None:
    network, expected = pico(LLAMA, tmp_path)
    tokens = ids(3, 20)[1].tolist()
    network.read(tokens[:10], 0, 3)
    assert network.reserve(9, 100)
    same(network.logits(network.states(tokens[10:], 10, 3)), expected[1, 10:])
    assert not network.reserve(9, 10_000, at_most=20_000)
    assert network.reserve(9, 100, at_most=1)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_is_not_computed_is_refused_by_name(case: Pico, tmp_path: Path) -> None:
    save(case.model(), tmp_path)
    with pytest.raises(ValueError, match=r"sliding-window|model_type"):
        DraftNetwork(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gemma3"}, "gemma3"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {}}, "quantized"),
        (
            {
                "model_type": "understudy_ragged_llama",
                "layer_attention_heads": [4, 2, 4, 4, 4],
                "layer_key_value_heads": [2] * 5,
            },
            "not whole groups of 2 query heads",
        ),
    ],
)
def test_reasons_against_a_config(change: dict[str, object], reason: str) -> None:
    config = json.loads(json.dumps(LLAMA.config().to_dict()))
    assert unsupported(config) is None
    assert reason in str(unsupported({**config, **change}))


def test_a_ragged_config_that_is_not_whole_is_no_error() -> None:
    assert unsupported({"model_type": "understudy_ragged_llama"}) == "its config.json has no 'num_hidden_layers'"


def test_near_its_limit_the_cache_does_not_grow_by_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, _ = pico(LLAMA, tmp_path)
    grown: list[tuple[int, int]] = []
    real = network._grow
    monkeypatch.setattr(
        network, "_grow", lambda slots, positions: grown.append((slots, positions)) or real(slots, positions)
    )
    assert all(network.reserve(4, positions, at_most=4 * 300) for positions in range(250, 301))
    assert len(grown) <= 3
    assert not network.reserve(4, 301, at_most=4 * 300)
    assert all(slots * positions <= 1200 for slots, positions in grown)
