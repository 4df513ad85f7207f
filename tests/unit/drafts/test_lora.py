import random

import pytest

from drafts.lora import SCALE, add_lora, allocated, layer_ranks, mirrored
from stages.errors import InputError
from tests.unit.pruning import pico

IMPORTANCE = [0.9, 0.5, 0.1, 0.5, 0.5]


@pytest.mark.parametrize("seed", range(40))
def test_the_mean_rank_is_the_uniform_one_and_every_layer_has_one(seed: int) -> None:
    draw = random.Random(seed)
    rank, steepness = draw.randint(1, 64), draw.choice([1, 4, 30])
    importance = [draw.uniform(0.001, 0.999) ** steepness for _ in range(draw.randint(1, 40))]
    ranks = allocated(rank, importance)
    assert sum(ranks) == rank * len(importance)
    assert min(ranks) >= 1


def test_ranks_are_in_proportion_to_importance() -> None:
    assert allocated(10, IMPORTANCE) == [18, 10, 2, 10, 10]
    assert allocated(8, [0.5] * 6) == [8] * 6


def test_pruned_first_turns_the_order_around() -> None:
    assert layer_ranks(10, "important_first", IMPORTANCE, "p") == [18, 10, 2, 10, 10]
    assert layer_ranks(10, "pruned_first", IMPORTANCE, "p") == [2, 10, 18, 10, 10]
    assert mirrored(mirrored(IMPORTANCE)) == pytest.approx(IMPORTANCE)


def test_uniform_ranks_need_no_importance_and_the_others_do() -> None:
    assert layer_ranks(8, "uniform", None, "p") is None
    with pytest.raises(InputError, match="no importance of layers"):
        layer_ranks(8, "pruned_first", None, "p")


def test_every_layer_gets_its_rank_and_the_same_scale() -> None:
    model = add_lora(pico.LLAMA.model(num_hidden_layers=12), 4, ranks=[1, 7, *[4] * 9, 2])
    found: dict[int, set[tuple[int, float]]] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            layer = int(name.split("layers.")[1].split(".")[0])
            found.setdefault(layer, set()).add((module.r["default"], module.scaling["default"]))
    assert found == {layer: {(rank, float(SCALE))} for layer, rank in enumerate([1, 7, *[4] * 9, 2])}
