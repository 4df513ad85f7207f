"""The written decision: round trip, refusals."""

import json

import pytest

from pruning.plan import DepthPlan, load_plan
from stages.errors import InputError

VALUES = {"target_sha256": "ab" * 32, "architecture": "LlamaForCausalLM", "num_layers": 4, "method": "first_and_last"}


def test_a_plan_loads_back_equal_from_file_and_folder(tmp_path):
    plan = DepthPlan(**VALUES, kept_layers=(0, 3), scores={"distance": 0.25, "span": [1, 3]})
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == load_plan(tmp_path) == plan
    assert load_plan(tmp_path).sha256 == plan.sha256 != DepthPlan(**VALUES, kept_layers=(0, 2)).sha256
    assert plan.removed_layers == (1, 2)


@pytest.mark.parametrize("kept", [(), (3, 0), (0, 0), (0, 4), (-1, 2)])
def test_impossible_layers_are_refused(tmp_path, kept):
    (tmp_path / "plan.json").write_text(json.dumps({**VALUES, "kept_layers": kept}))
    with pytest.raises(InputError, match="ascending indices from 0 to 3"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not valid JSON at line 1"),
        ("[]", "plan.json: Input should be"),
        (json.dumps({**VALUES, "kept_layers": [0], "schema_version": 2}), "'schema_version'"),
        (json.dumps({**VALUES, "kept_layers": [0], "kept_layer": 1}), "did you mean 'kept_layers'"),
        (json.dumps(VALUES), "'kept_layers': Field required"),
    ],
)
def test_what_is_not_a_plan_is_refused(tmp_path, content, said):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(InputError, match=said) as error:
        load_plan(tmp_path / "plan.json")
    assert "\n" not in str(error.value)


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no such file; give a plan\.json"):
        load_plan(tmp_path / "nowhere.json")


def test_a_plan_for_another_target_is_refused():
    plan = DepthPlan(**VALUES, kept_layers=(0,))
    plan.check_target("ab" * 32)
    with pytest.raises(InputError, match="made for the target abababababab, not for cdcdcdcdcdcd"):
        plan.check_target("cd" * 32, "target")
