"""Statistics of one forward pass: right, without padding, counted, and loud about NaN."""

import math

import pytest
import torch

from pruning.calibration import pad
from pruning.statistics import measure
from stages.errors import InputError

from . import pico

ROWS = [pico.ids(1, 9, seed)[0].tolist() for seed in range(3)]
TEXT = [ROWS[0], ROWS[1][:4], ROWS[2][:6]]


def slow(model) -> tuple[list[float], torch.Tensor]:
    """Mean angle of each layer, and all inputs of down_proj [layers, tokens, channels], one sample at a time."""
    angles, inputs = [0.0] * pico.LAYERS, [[] for _ in range(pico.LAYERS)]
    handles = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=i: inputs[i].append(args[0][0].double()))
        for i, layer in enumerate(model.model.layers)
    ]
    layers = list(model.model.layers)

    def turned(i):
        def hook(_, args, kwargs, output):
            x, y = (args[0] if args else kwargs["hidden_states"])[0].double(), output[0].double()
            for a, b in zip(x, y, strict=True):
                angles[i] += math.acos(float(a @ b / (a.norm() * b.norm()))) / math.pi

        return hook

    handles += [layer.register_forward_hook(turned(i), with_kwargs=True) for i, layer in enumerate(layers)]
    with torch.no_grad():
        for row in TEXT:
            model(input_ids=torch.tensor([row]), use_cache=False)
    for handle in handles:
        handle.remove()
    n = sum(map(len, TEXT))
    return [angle / n for angle in angles], torch.stack([torch.cat(rows) for rows in inputs])


@pytest.mark.parametrize("name", ["llama-tied", "qwen3-untied"])
def test_statistics_equal_a_slow_reference_and_padding_adds_nothing(name):
    model = next(case for case in pico.CASES if case.name == name).model()
    distances, inputs = slow(model)
    found = measure(model, [pad(TEXT[:2]), pad(TEXT[2:])])
    assert found.num_tokens == 19
    assert found.distances.tolist() == pytest.approx(distances, rel=1e-5)
    torch.testing.assert_close(found.activations, inputs.square().mean(1).sqrt(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found.variances, inputs.var(1), rtol=1e-4, atol=1e-8)


def test_one_forward_pass_over_the_text_and_none_of_the_lm_head():
    model = pico.LLAMA.model()
    calls = {"layers": 0, "head": 0}
    for layer in model.model.layers:
        layer.register_forward_hook(lambda *_: calls.update(layers=calls["layers"] + 1))
    model.lm_head.register_forward_hook(lambda *_: calls.update(head=1))
    measure(model, [pad(TEXT[:2]), pad(TEXT[2:])])
    assert calls == {"layers": 2 * pico.LAYERS, "head": 0}


def test_nan_is_refused_with_its_layer():
    model = pico.LLAMA.model()
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="layer 3: NaN or infinity in the inputs of down_proj"):
        measure(model, [pad(TEXT)])
