"""Merging: two recoveries of the same pruned model on different data, tensor by tensor on the arc between them (SLERP).

arXiv 2410.09982 merges self-distilled models this way; spherical interpolation is Shoemake's (SIGGRAPH 1985).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from drafts.packaging import SCHEMA_VERSION
from drafts.parallel import CONFIG_KEY
from drafts.trained_on import read_trained_on, write_trained_on
from pruning.checkpoint import load_model, write_checkpoint
from pruning.plan import load_plan
from stages.errors import InputError
from stages.folders import publish, read_json, write_text
from stages.hashing import checkpoint_hash, tokenizer_hash
from stages.progress import log
from stages.provenance import Run, read, up_to_date
from stages.settings import Settings

NEARLY_PARALLEL = 1e-4
"""Below this sine of the angle the arc is straight within float32 and is walked linearly."""

SAME_MODEL = "only recoveries of the same pruned model can be merged"


class MergeSettings(Settings):
    """How two drafts are merged.

    Attributes:
        share: of the second draft; 0 is the first, 1 the second.
    """

    share: float = Field(default=0.5, ge=0, le=1)


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """The point at ``share`` of the arc from one tensor to another of the same shape, in their type.

    With Omega the angle between them as vectors: sin((1 - share) Omega) / sin(Omega) * first + sin(share Omega) / sin(Omega)
    * second; linear where sin(Omega) is near 0.
    """
    a, b = first.double().flatten(), second.double().flatten()
    lengths = a.norm() * b.norm()
    cosine = (a @ b / lengths).clamp(-1, 1) if lengths > 0 else torch.ones((), dtype=a.dtype)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    if sine < NEARLY_PARALLEL:
        merged = (1 - share) * a + share * b
    else:
        merged = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / sine
    return merged.view_as(first).to(first.dtype)


def check_parents(target_hash: str, first: Path, second: Path) -> None:
    """Both must be recoveries of the same weights: the same plan of this target, and the same pruned model where they say so.

    Raises:
        InputError: names the parent that does not fit.
    """
    plans = [load_plan(parent) for parent in (first, second)]
    for parent, plan in zip((first, second), plans, strict=True):
        plan.check_target(target_hash, str(parent / "plan.json"))
    plans[1].check_same_parts(plans[0], str(second), str(first), SAME_MODEL)
    made = [read(parent) or {} for parent in (first, second)]
    for parent, record in zip((first, second), made, strict=True):
        if (record.get("settings") or {}).get("from_scratch"):
            raise InputError(f"{parent}: was trained from scratch (from_scratch); {SAME_MODEL}")
    weights: list[Any] = [(record.get("inputs") or {}).get("pruned") for record in made]
    if None not in weights and weights[0] != weights[1]:
        raise InputError(
            f"{second}: was recovered from the weights {weights[1][:12]}, {first} from {weights[0][:12]}; recover both from the "
            "same folder"
        )
    marks = [read_json(parent / "config.json", "copy the draft again").get(CONFIG_KEY) for parent in (first, second)]
    if marks[0] != marks[1]:
        raise InputError(
            f"{second}: its token for parallel drafting is {marks[1]}, that of {first} {marks[0]}; recover both with "
            "parallel_tokens, or neither"
        )


def merge(target: Path, first: Path, second: Path, out: Path, settings: MergeSettings) -> None:
    """Writes the merged draft's checkpoint to ``out``; measure it like any other.

    Raises:
        InputError: the parents are not of the same plan and target, come from other weights, or differ in shape.
    """
    target_hash = checkpoint_hash(target)
    check_parents(target_hash, first, second)
    inputs = {"target": target_hash, "first": checkpoint_hash(first), "second": checkpoint_hash(second)}
    run = Run("merge", settings.model_dump(mode="json"), inputs)
    if up_to_date(run, out):
        return
    merged, other = load_model(first), dict(load_model(second).named_parameters())
    if more := sorted(other.keys() - dict(merged.named_parameters()).keys()):
        raise InputError(f"{second}: has a tensor {more[0]}, which {first} has not")
    with torch.no_grad():
        for name, parameter in merged.named_parameters():
            if name not in other or other[name].shape != parameter.shape:
                raise InputError(f"{second}: has no tensor {name} of shape {list(parameter.shape)} like {first}")
            parameter.copy_(slerp(parameter, other[name], settings.share))
    with publish(out, stage=run.stage) as folder:
        write_checkpoint(merged, first, folder, read_json(first / "config.json", "copy the draft again"))
        write_text(folder / "plan.json", (first / "plan.json").read_text(encoding="utf-8"))
        run.write(folder)
        write_text(folder / "understudy.json", json.dumps(_record(target, target_hash, first, inputs), indent=2) + "\n")
        write_text(folder / "README.md", _card(target, first, second, settings.share))
        lists = [read_trained_on(parent) for parent in (first, second)]
        if lists[0] is not None and lists[1] is not None:
            write_trained_on(folder, lists[0] | lists[1])
    log(f"{out}: {first.name} and {second.name} merged at {settings.share:g}")


def _record(target: Path, target_hash: str, first: Path, inputs: dict[str, str]) -> dict[str, Any]:
    """The content of understudy.json; figures come with measuring."""
    return {
        "schema_version": SCHEMA_VERSION, "target_sha256": target_hash, "target_tokenizer_sha256": tokenizer_hash(target),
        "plan_sha256": load_plan(first).sha256, "merged_from": [inputs["first"], inputs["second"]], "figures": {},
    }  # fmt: skip


def _card(target: Path, first: Path, second: Path, share: float) -> str:
    return (
        f"# Draft of `{target.name}`, merged\n\nSpherical interpolation of `{first.name}` and `{second.name}`, two recoveries "
        f"of the same pruned model, at {share:g}. `understudy.json` has their hashes and the target's.\n"
    )
