"""The config of a narrower model, as a mapping like config.json: plain where every layer has one shape, else ragged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pruning.families import FAMILIES, Family, family_of, ragged_family
from pruning.plan import WidthPlan
from stages.errors import InputError
from stages.ragged import head_dim, num_groups


def check_uniform(config: Any, what: str) -> None:
    """Refuses a model whose layers have shapes of their own already."""
    if family_of(config).ragged:
        raise InputError(
            f"{what} needs a model whose layers have one shape; give the target this one was made from, or a model that was "
            "narrowed with export 'uniform'"
        )


def _one(counts: Sequence[int], what: str) -> int:
    """The one number in ``counts``; InputError when there are several."""
    if len(set(counts)) != 1:
        raise InputError(
            f"{what} differ from layer to layer ({min(counts)} to {max(counts)}); a plain model has one number, export 'ragged'"
        )
    return counts[0]


def _plain_heads(values: dict[str, Any], family: Family, groups: int) -> dict[str, Any]:
    """The keys of a plain config with so many groups; InputError where no plain model can have them."""
    heads = groups * (values["num_attention_heads"] // num_groups(values))
    if family.derived_head_dim and heads != values["num_attention_heads"]:
        raise InputError(f"a plain {family.architecture} takes its heads' width from their number; export 'ragged'")
    if family.model_type == "llama" and values["hidden_size"] % heads:
        raise InputError(
            f"a plain {family.architecture} cannot have {heads} heads at a hidden size of {values['hidden_size']}, which "
            "must be a multiple; export 'ragged'"
        )
    return {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": head_dim(values)}


def _ragged(values: dict[str, Any], family: Family, plan: WidthPlan) -> dict[str, Any]:
    """The keys of a ragged config."""
    if family.model_type == "mistral" and values.get(
        "layer_types"
    ):  # windows in some layers: transformers takes its Ministral
        family = FAMILIES["MinistralForCausalLM"]
    named = ragged_family(family)
    found = {
        "architectures": [named.architecture], "model_type": named.model_type, "head_dim": head_dim(values),
        "intermediate_size": max(plan.widths), "layer_intermediate_sizes": plan.widths,
    }  # fmt: skip
    if plan.kept_groups is not None:
        readers = values["num_attention_heads"] // num_groups(values)
        found["layer_key_value_heads"] = [len(row) for row in plan.kept_groups]
        found["layer_attention_heads"] = [readers * len(row) for row in plan.kept_groups]
    return found


def narrow_config(values: dict[str, Any], plan: WidthPlan) -> dict[str, Any]:
    """The config (as a mapping) of the model that a plan leaves.

    Raises:
        InputError: the config does not fit the plan, or no plain model has the plan's shape.
    """
    family = family_of(values)
    check_uniform(values, "narrowing")
    found = {"num_layers": values["num_hidden_layers"], "num_channels": values["intermediate_size"]}
    wanted = {"num_layers": plan.num_layers, "num_channels": plan.num_channels}
    if plan.num_groups is not None:
        found["num_groups"], wanted["num_groups"] = num_groups(values), plan.num_groups
    if found != wanted:
        raise InputError(f"the plan is for {wanted}, the target has {found}; make a new plan for this target")
    if any(len(row) != values["hidden_size"] for row in plan.down_bias or ()):
        raise InputError(
            f"down_bias must have {values['hidden_size']} entries for each layer, the target's hidden size"
        )
    bias = {"mlp_bias": True} if plan.down_bias is not None else {}
    if bias and not isinstance(family.mlp_bias, str):
        raise InputError(f"{family.architecture} has no bias in its FFNs to hold the plan's down_bias; leave it out")
    if plan.export == "ragged":
        return {**values, **bias, **_ragged(values, family, plan)}
    plain: dict[str, Any] = {"intermediate_size": _one(plan.widths, "widths")}
    if plan.kept_groups is not None:
        plain |= _plain_heads(values, family, _one([len(row) for row in plan.kept_groups], "numbers of heads"))
    return {**values, **bias, **plain}
