"""Scores against a slow reference in numpy, and what must hold for them on any model."""

import math

import numpy as np
import pytest
import torch

from pruning import scores, selection
from pruning.calibration import Batch, pad
from stages.errors import InputError

from . import pico

LENGTHS = (3, 7, 12)
CASES = pytest.mark.parametrize("case", pico.CASES, ids=lambda case: case.name)


def sequences() -> list[list[int]]:
    return [pico.ids(1, length, seed=length)[0].tolist() for length in LENGTHS]


def batches() -> list[Batch]:
    """Two batches, one of them padded."""
    return [pad(sequences()[:2]), pad(sequences()[2:])]


def identity(model: torch.nn.Module, layer: int) -> None:
    """Makes a layer hand its input on: nothing is added to the residual stream."""
    with torch.no_grad():
        for part in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
            for parameter in part.parameters():
                parameter.zero_()


def residual_streams(model: torch.nn.Module, sequence: list[int]) -> np.ndarray:
    """H[0] … H[L] of one sequence without padding, [L+1, T, D] float64.

    H[L] is found without hooks: the last layer is called by hand on what transformers says it reads.
    """
    with torch.no_grad():
        output = model.model(torch.tensor([sequence]), output_hidden_states=True, use_cache=False)
        streams = list(output.hidden_states[:-1])
        positions = torch.arange(len(sequence))[None]
        last = model.model.layers[-1]
        window = getattr(last.self_attn, "sliding_window", None) or getattr(model.config, "sliding_window", None)
        if getattr(model.config, "layer_types", ["full_attention"])[-1] == "full_attention":
            window = None
        distance = positions[0][:, None] - positions[0][None, :]
        seen = (distance >= 0) & (distance < (window or len(sequence)))
        mask = torch.where(seen, 0.0, -torch.inf)[None, None]
        rotary = model.model.rotary_emb(streams[-1], positions)
        written = last(streams[-1], attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        torch.testing.assert_close(model.model.norm(written), output.last_hidden_state, atol=1e-5, rtol=1e-4)
    return torch.cat([*streams, written]).double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def reference(model: torch.nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Angular distances and Block Influence, one sample, place and token at a time."""
    count = pico.LAYERS + 1
    distances, influences, tokens = np.zeros((count, count)), np.zeros(pico.LAYERS), 0
    for sequence in sequences():
        streams = residual_streams(model, sequence)
        tokens += len(sequence)
        for low in range(count):
            for high in range(count):
                angle = math.acos(min(1.0, max(-1.0, cosine(streams[low, -1], streams[high, -1]))))
                distances[low, high] += angle / math.pi / len(LENGTHS)
        for layer in range(pico.LAYERS):
            for token in range(len(sequence)):
                influences[layer] += 1 - cosine(streams[layer, token], streams[layer + 1, token])
    return distances, influences / tokens


@CASES
def test_distances_and_influences_equal_a_slow_reference(case):
    model = case.model()
    distances, influences = scores.layer_scores(model, batches())
    expected_distances, expected_influences = reference(model)
    np.testing.assert_allclose(distances, expected_distances, atol=1e-5)
    np.testing.assert_allclose(influences, expected_influences, atol=1e-5)


@CASES
def test_distances_are_angles(case):
    distances = np.array(scores.layer_scores(case.model(), batches())[0])
    assert distances.shape == (pico.LAYERS + 1, pico.LAYERS + 1)
    assert (distances >= 0).all()
    assert (distances <= 1).all()
    np.testing.assert_allclose(distances, distances.T, atol=1e-12)
    np.testing.assert_allclose(np.diag(distances), 0, atol=1e-7)


def test_the_last_state_is_taken_before_the_final_norm():
    """A final norm that turns every state around would change d(., L); it must not."""
    model = pico.LLAMA.model()
    before = scores.layer_scores(model, batches())
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.randn(32, generator=torch.Generator().manual_seed(5)))
    assert scores.layer_scores(model, batches()) == before


def test_transformers_hidden_states_would_be_off_by_one_norm():
    """Why we do not read ``output_hidden_states``: its last entry is normed."""
    model = pico.LLAMA.model()
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad(), scores.watching(model, lambda index, hidden: seen.update({index: hidden})):
        theirs = model.model(pico.ids(), output_hidden_states=True).hidden_states
    assert sorted(seen) == list(range(pico.LAYERS + 1))
    assert len(theirs) == pico.LAYERS + 1
    for index in range(pico.LAYERS):
        assert torch.equal(seen[index], theirs[index])
    torch.testing.assert_close(model.model.norm(seen[pico.LAYERS]), theirs[-1])
    assert not torch.allclose(seen[pico.LAYERS], theirs[-1], atol=1e-2)


@CASES
@pytest.mark.parametrize("layer", [0, 2, pico.LAYERS - 1])
def test_a_layer_that_does_nothing_goes_first(case, layer):
    model = case.model()
    identity(model, layer)
    distances, influences = scores.layer_scores(model, batches())
    assert distances[layer][layer + 1] == pytest.approx(0, abs=1e-7)
    assert influences[layer] == pytest.approx(0, abs=1e-6)
    removed, kl = scores.greedy_removal(model, batches(), keep=pico.LAYERS - 1)
    assert removed == [layer]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    kept = tuple(index for index in range(pico.LAYERS) if index != layer)
    assert selection.angular(distances, pico.LAYERS - 1) == kept
    assert selection.block_influence(influences, pico.LAYERS - 1) == kept
    assert selection.greedy_kl(pico.LAYERS, removed, pico.LAYERS - 1) == kept


def test_padding_and_batching_change_nothing():
    model = pico.LLAMA.model()
    one_by_one = scores.layer_scores(model, [pad([sequence]) for sequence in sequences()])
    together = scores.layer_scores(model, [pad(sequences())])
    np.testing.assert_allclose(together[0], one_by_one[0], atol=1e-6)
    np.testing.assert_allclose(together[1], one_by_one[1], atol=1e-6)
    alone = scores.greedy_removal(model, [pad([sequence]) for sequence in sequences()], keep=1)
    padded = scores.greedy_removal(model, [pad(sequences())], keep=1)
    assert alone[0] == padded[0]
    np.testing.assert_allclose(alone[1], padded[1], atol=1e-5)


def masked_logits(model: torch.nn.Module, sequence: list[int], removed: tuple[int, ...]) -> np.ndarray:
    """Logits with layers undone by hooks, in float64."""

    def undo(module, args, kwargs, output):
        return args[0] if args else kwargs["hidden_states"]

    handles = [model.model.layers[layer].register_forward_hook(undo, with_kwargs=True) for layer in removed]
    with torch.no_grad():
        logits = model(torch.tensor([sequence]), use_cache=False).logits[0].double().numpy()
    for handle in handles:
        handle.remove()
    return logits


def reference_divergence(model: torch.nn.Module, removed: tuple[int, ...]) -> float:
    """Mean over tokens of sum_x p(x) ln(p(x) / q(x))."""
    total = 0.0
    for sequence in sequences():
        full, less = masked_logits(model, sequence, ()), masked_logits(model, sequence, removed)
        for p_logits, q_logits in zip(full, less, strict=True):
            p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (p_logits, q_logits))
            total += float((p * np.log(p / q)).sum())
    return total / sum(LENGTHS)


@CASES
def test_greedy_removal_equals_a_slow_reference(case, monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_TOKENS", 4)  # chunks that do not divide the tokens evenly
    model = case.model()
    removed, kl = scores.greedy_removal(model, batches(), keep=2)
    expected: list[int] = []
    for given in kl:
        rises = {
            layer: reference_divergence(model, (*expected, layer))
            for layer in range(pico.LAYERS)
            if layer not in expected
        }
        expected.append(min(rises, key=lambda layer: rises[layer]))
        assert given == pytest.approx(min(rises.values()), abs=1e-4)
    assert removed == expected
    assert len(removed) == pico.LAYERS - 2


def test_greedy_removal_counts_its_candidates():
    tried: list[float] = []
    scores.greedy_removal(pico.LLAMA.model(), batches(), keep=2, advance=lambda amount, note: tried.append(amount))
    assert len(tried) == scores.num_candidates(pico.LAYERS, 2) == 5 + 4 + 3


@pytest.mark.parametrize("layer", [0, 3, pico.LAYERS - 1])
def test_nan_is_refused_with_its_layer(layer):
    model = pico.LLAMA.model()
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(InputError, match=rf"output of layer {layer} has NaN"):
        scores.layer_scores(model, batches())
    with pytest.raises(InputError, match="not a number"):
        scores.greedy_removal(model, batches(), keep=pico.LAYERS - 1)


def test_a_zero_state_is_refused_not_made_a_number():
    model = pico.LLAMA.model()
    with torch.no_grad():
        model.model.embed_tokens.weight[sequences()[0][0]] = 0
    with pytest.raises(InputError, match="output of the embeddings is all zero"):
        scores.layer_scores(model, batches())


def test_opposite_and_orthogonal_states():
    states = torch.tensor([[[1.0, 0.0], [-2.0, 0.0], [0.0, 3.0], [1e-3, 0.0]]])
    distances = scores.angular_distances(states)[0]
    np.testing.assert_allclose(distances[0], [0, 1, 0.5, 0], atol=1e-12)
