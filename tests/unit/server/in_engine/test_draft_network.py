"""The draft network computes what transformers computes, however its tokens come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from server.drafting import unsupported
from server.in_engine.draft_network import DraftNetwork
from tests.unit.pruning.pico import CASES, LLAMA, Pico, ids, save

RUN = [case for case in CASES if unsupported(case.config().to_dict()) is None]
REFUSED = [case for case in CASES if case not in RUN]


def pico(case: Pico, folder: Path) -> tuple[DraftNetwork, Tensor]:
    """A network of the case, and transformers' logits [3, 20, vocabulary] for ``ids(3, 20)``."""
    save(case.model(), folder)
    network = DraftNetwork(folder)
    network.reserve(4, 20)
    return network, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids(3, 20)).logits


def read(network: DraftNetwork, tokens: Tensor, starts: list[int], slots: list[int]) -> Tensor:
    hidden = network.forward(tokens, starts, slots)
    return network.logits(hidden.flatten(0, 1)).unflatten(0, tokens.shape)


def test_the_cases_cover_all_families() -> None:
    assert {case.config().model_type for case in RUN} == {"llama", "mistral", "qwen2", "qwen3"}
    assert REFUSED


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
@torch.inference_mode()
def test_same_logits_as_transformers(case: Pico, tmp_path: Path) -> None:
    network, expected = pico(case, tmp_path)
    tokens = ids(3, 20)
    whole = read(network, tokens[:1], [0], [2])
    in_parts = torch.cat(
        [read(network, tokens[:, :7], [0] * 3, [3, 0, 1]), read(network, tokens[:, 7:], [7] * 3, [3, 0, 1])], 1
    )
    singly = [read(network, tokens[:1, i : i + 1], [i], [2]) for i in range(20)]
    torch.testing.assert_close(whole, expected[:1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(in_parts, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(singly, 1), expected[:1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_sequences_of_different_lengths_in_one_pass(tmp_path: Path) -> None:
    network, expected = pico(LLAMA, tmp_path)
    tokens = ids(3, 20)
    for row, length in enumerate((5, 12, 9)):
        read(network, tokens[row : row + 1, :length], [0], [row])
    padded = torch.stack([tokens[0, 5:8], tokens[1, 12:15], torch.tensor([int(tokens[2, 9]), 0, 0])])
    got = read(network, padded, [5, 12, 9], [0, 1, 2])
    torch.testing.assert_close(got[0], expected[0, 5:8], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], expected[1, 12:15], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[2, 0], expected[2, 9], atol=1e-4, rtol=1e-4)
    later = read(network, tokens[2:, 10:], [10], [2])  # over the padding
    torch.testing.assert_close(later[0], expected[2, 10:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_growing_cache_keeps_what_is_in_it(tmp_path: Path) -> None:
    network, expected = pico(LLAMA, tmp_path)
    read(network, ids(3, 20)[1:2, :10], [0], [3])
    assert network.reserve(9, 100)
    torch.testing.assert_close(
        read(network, ids(3, 20)[1:2, 10:], [10], [3])[0], expected[1, 10:], atol=1e-4, rtol=1e-4
    )
    assert not network.reserve(9, 10_000, at_most=20_000)
    assert network.reserve(9, 100, at_most=1)


@torch.inference_mode()
def test_bfloat16_stays_near(tmp_path: Path) -> None:
    _, expected = pico(LLAMA, tmp_path)
    network = DraftNetwork(tmp_path, torch.bfloat16)
    network.reserve(3, 20)
    got = torch.softmax(read(network, ids(3, 20), [0] * 3, [0, 1, 2]), -1)
    assert (got - torch.softmax(expected, -1)).abs().sum(-1).max() < 0.2


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
    ],
)
def test_reasons_against_a_config(change: dict[str, object], reason: str) -> None:
    config = json.loads(json.dumps(LLAMA.config().to_dict()))
    assert unsupported(config) is None
    assert reason in str(unsupported({**config, **change}))
