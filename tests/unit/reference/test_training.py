import random

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from reference.batches import LoopingOutput, make_batch
from reference.data import Windows
from reference.target_model import causal_attention, initialise, target_config
from reference.train_target import (
    TrainingSettings,
    learning_rate_factor,
    target_loss,
)


def windows(length: int = 64) -> Windows:
    rng = np.random.default_rng(0)
    sources = {name: [rng.integers(0, 4096, 90).astype(np.uint16) for _ in range(8)] for name in ("a", "b")}
    return Windows(sources, {"a": 0.7, "b": 0.3}, length, seed=3)


def test_a_resumed_stream_goes_on_with_the_window_it_would_have_seen() -> None:
    first = windows()
    for _ in range(17):
        first.next()
    second = windows()
    second.state, second.drawn = {name: list(value) for name, value in first.state.items()}, first.drawn
    for _ in range(20):
        assert np.array_equal(first.next(), second.next())


def test_labels_follow_inputs_and_repeated_rows_point_one_span_back() -> None:
    ids, labels, previous = make_batch(windows(), rows=4, ditto_rows=1, rng=random.Random(1))
    assert torch.equal(ids[:3, 1:], labels[:3, :-1])
    assert (previous[:3] == -1).all()
    assert (labels[3] == -100).all()
    positions = (previous[3] >= 0).nonzero().flatten()
    assert len(positions) > 10
    for position in positions[:-1].tolist():
        back = int(previous[3, position])
        assert ids[3, position] == ids[3, back]
        assert ids[3, position + 1] == ids[3, back + 1]


def test_rows_of_looping_outputs_judge_exactly_the_repeated_tokens() -> None:
    output = LoopingOutput(ids=(90, 91, 1, 2, 3, 1, 2, 3, 1, 2, 3, 95), period=3, first=5, count=6)
    for length, repeated in ((64, [1, 2, 3, 1, 2, 3]), (10, [2, 3, 1, 2, 3])):  # whole; cut at the front
        ids, labels, previous = make_batch(windows(length), 2, 1, random.Random(1), [output])
        judged = (previous[1] >= 0).nonzero().flatten().tolist()
        assert [int(ids[1, place + 1]) for place in judged] == repeated
        assert all(ids[1, previous[1, place] + 1] == ids[1, place + 1] for place in judged)
        assert (labels[1] == -100).all()
        assert (labels[0] >= 0).all()


def test_the_ditto_loss_is_zero_where_each_repetition_halves_the_chance() -> None:
    """Equation 5 of arXiv 2206.02369 with lambda = 0.5, against the probabilities themselves."""
    ids = torch.tensor([[0, 1, 0, 1, 0]])
    previous = torch.tensor([[-1, -1, 0, 1, 2]])
    labels = torch.tensor([[-100, -100, -100, -100, 0]])
    chances = torch.tensor([0.8, 0.8, 0.4, 0.4, 0.5])
    logits = torch.full((1, 5, 2), 0.0)
    for position, (chance, token) in enumerate(zip(chances, [1, 0, 1, 0, 0], strict=True)):
        logits[0, position, token] = torch.log(chance / (1 - chance))
    settings = TrainingSettings(ditto_weight=1.0)
    loss = target_loss(logits, ids, labels, previous, settings)
    kept = -torch.log(1 - (chances[4] - 0.5 * chances[2]).abs()) / 3
    assert loss.item() == pytest.approx((-torch.log(chances[4]) + kept).item(), abs=1e-5)


def test_plain_attention_equals_the_library_s() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 10, 8, generator=generator)
    key, value = (torch.randn(2, 2, 10, 8, generator=generator) for _ in range(2))
    ours, _ = causal_attention(None, query, key, value, None, scaling=8**-0.5)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(ours.transpose(1, 2), theirs, atol=1e-5)


def test_layers_start_as_identities_and_differ_from_each_other() -> None:
    config = target_config()
    config.num_hidden_layers = 2
    model = LlamaForCausalLM(config).float()
    initialise(model, seed=0)
    first, second = (layer.self_attn.q_proj.weight for layer in model.model.layers)
    assert not torch.equal(first, second)
    assert not model.model.layers[0].mlp.down_proj.weight.any()


def test_the_learning_rate_is_a_trapezoid() -> None:
    settings = TrainingSettings()
    assert learning_rate_factor(0, settings) == pytest.approx(1 / settings.warmup_steps)
    assert learning_rate_factor(int(0.5 * settings.steps), settings) == 1.0
    assert learning_rate_factor(int(0.8 * settings.steps), settings) == pytest.approx(0.5, abs=0.01)
