"""The recipes for real targets: whole, and with the sizes that their architectures have."""

import json
from pathlib import Path

import pytest

from benchmarks.scaled_down import CONFIGS, scaled_config
from drafts.building import read_recipe
from drafts.estimating import estimate

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize(
    ("name", "billions", "draft_billions", "cost"),
    [
        ("llama-3.1-8b", 8.030, 2 * 0.21812 + 1.0507, 0.128),
        ("llama-3.1-70b", 70.554, 3 * 0.85565 + 2.1013, 0.0522),
        ("qwen3-8b", 8.191, 2 * 0.19295 + 1.2447, 0.133),
    ],
)
def test_sizes_of_real_targets(name: str, billions: float, draft_billions: float, cost: float, tmp_path: Path) -> None:
    """Published totals: 8.03 B, 70.6 B, 8.2 B; drafts are layers, embeddings and head."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "x"}\n')
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    placed = recipe.model_copy(
        update={"target": tmp_path, "prompts": recipe.prompts.model_copy(update={"train": prompts})}
    )
    target, draft, lines = estimate(placed, 1e14)
    assert target.total / 1e9 == pytest.approx(billions, abs=0.001)
    assert draft.total / 1e9 == pytest.approx(draft_billions, abs=0.001)
    assert draft.work / target.work == pytest.approx(cost, abs=0.001)
    memory = next(line.what for line in lines if line.stage == "recover")
    assert f"{target.total * 2 / 2**20:,.0f} MiB for the target" in memory


@pytest.mark.parametrize("name", CONFIGS)
def test_scaled_down_models_keep_the_proportions(name: str) -> None:
    real, small = CONFIGS[name], scaled_config(name)
    assert small["model_type"] == real["model_type"]
    assert small["intermediate_size"] / small["hidden_size"] == real["intermediate_size"] / real["hidden_size"]
    assert small["num_attention_heads"] / small["num_key_value_heads"] == (
        real["num_attention_heads"] / real["num_key_value_heads"]
    )
