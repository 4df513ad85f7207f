"""The written decision: round trip, refusals."""

import json

import pytest

from pruning.plan import DepthPlan, WidthPlan, load_plan
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


WIDTH = {
    **VALUES, "num_layers": 2, "kind": "width", "method": "cfsp", "criterion": "paper", "export": "ragged", "sparsity": 0.5,
    "realised_sparsity": 0.5, "num_channels": 4, "num_groups": 2, "kept_channels": [[0, 1], [3]], "kept_groups": [[0], [0, 1]],
    "importance": [0.4, 0.6],
}  # fmt: skip


def test_a_width_plan_loads_back_equal_and_names_what_stays(tmp_path):
    plan = WidthPlan(**WIDTH)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path) == plan
    assert (plan.widths, plan.kept_layers) == ([2, 1], (0, 1))
    assert plan.described == "1 to 2 of 4 FFN channels in each of 2 layers, 3 of 4 head groups"
    with pytest.raises(InputError, match="made for the target"):
        plan.check_target("cd" * 32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"kept_channels": [[0, 1], []]},
            "kept_channels of layer 1 must be ascending indices from 0 to 3, at least one",
        ),
        ({"kept_channels": [[0, 1], [4]]}, "kept_channels of layer 1"),
        ({"kept_channels": [[0, 1]]}, "one row for each of the 2 layers"),
        ({"kept_groups": [[], [0]]}, "kept_groups of layer 0"),
        ({"num_groups": None}, "kept_groups must have one row"),
        ({"export": "uniform"}, "equally many in every layer"),
        ({"sparsity": 1.0}, "'sparsity'"),
        ({"importance": [0.5]}, "importance must have one entry for each of the 2 layers"),
    ],
)
def test_impossible_widths_are_refused(tmp_path, changes, said):
    (tmp_path / "plan.json").write_text(json.dumps({**WIDTH, **changes}))
    with pytest.raises(InputError, match=said):
        load_plan(tmp_path)


def test_only_the_same_parts_belong_together():
    plan, depth = WidthPlan(**WIDTH), DepthPlan(**VALUES, kept_layers=(0, 1))
    plan.check_same_parts(WidthPlan(**WIDTH), "a", "b", "no")
    with pytest.raises(InputError, match="a: keeps other channels of the FFNs than b; merge others"):
        plan.check_same_parts(WidthPlan(**{**WIDTH, "kept_channels": [[0, 2], [3]]}), "a", "b", "merge others")
    with pytest.raises(InputError, match="keeps other heads"):
        plan.check_same_parts(WidthPlan(**{**WIDTH, "kept_groups": [[1], [0, 1]]}), "a", "b", "merge others")
    for one, other in ((plan, depth), (depth, plan)):
        with pytest.raises(InputError, match=r"a: was .* width plan"):
            one.check_same_parts(other, "a", "b", "no")


def test_plans_that_make_up_for_channels_differently_do_not_belong_together():
    bare, biased = WidthPlan(**WIDTH), WidthPlan(**{**WIDTH, "down_bias": [[0.5, 0.0], [0.0, 0.25]]})
    for one, other in ((bare, biased), (biased, bare)):
        with pytest.raises(InputError, match="makes up for other channels by biases"):
            one.check_same_parts(other, "a", "b", "merge others")
