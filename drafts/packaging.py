"""Packs a recovered draft: its model card and ``understudy.json``, which bind it to its target by hashes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drafts.distilling import DATA, read_data
from drafts.pictures import draw_training
from pruning.plan import AnyPlan, load_plan
from stages import provenance
from stages.folders import write_text
from stages.hashing import checkpoint_hash, file_hash, tokenizer_hash

SCHEMA_VERSION = 1

OWN = "what a draft answered itself"
REFERENCES = "the prompts' references"
ANSWERS = {"direct": "the target's own answers", "rewrite": "references in the target's own words"}
"""What a record's answer is, by why it was selected; a rewrite that gave way to the reference says why instead."""


def describe_draft(target: Path, draft: Path, data: Path) -> dict[str, Any]:
    """The content of ``understudy.json``: which target, plan and data the draft comes from, and its offline figures."""
    record = provenance.read(draft) or {}
    return {
        "schema_version": SCHEMA_VERSION,
        "target_sha256": checkpoint_hash(target),
        "target_tokenizer_sha256": tokenizer_hash(target),
        "plan_sha256": load_plan(draft).sha256,
        "data_sha256": file_hash(data / DATA),
        "figures": record.get("figures", {}),
    }


def _origin(plan: AnyPlan, settings: dict[str, Any]) -> str:
    """Where the weights come from that training began with."""
    if settings.get("from_scratch"):
        return f"New weights in the shape of {plan.described} of the target"
    return f"{plan.described[0].upper()}{plan.described[1:]} of the target (chosen by `{plan.method}`)"


def _material(records: Sequence[dict[str, Any]]) -> str:
    """What the answers were that it was trained on, with their shares where there are several kinds."""
    found = Counter(
        OWN if "answerer_sha256" in record else ANSWERS.get(record["selected"], REFERENCES) for record in records
    )
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} ({number / len(records):.0%})" for name, number in found.most_common())


def model_card(target: Path, draft: Path, record: dict[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """README.md of a draft folder; ``record`` is its understudy.json, ``records`` the data it was trained on."""
    plan = load_plan(draft)
    run = provenance.read(draft) or {}
    position, figures = run.get("position", {}), record["figures"]
    lines = [
        f"# Draft of `{target.name}`", "",
        f"{_origin(plan, run.get('settings', {}))}, then trained on {_material(records)}. "
        "It serves as draft model for speculative decoding of that target and no other: "
        f"target checkpoint SHA-256 `{record['target_sha256']}`.", "",
        "| | |", "|---|---|",
        f"| overlap with the target, sum min(p, q), answers not trained on | {figures.get('overlap', float('nan')):.3f} |",
        f"| argmax agreement, same answers | {figures.get('agreement', float('nan')):.3f} |",
        f"| trained on | {position.get('tokens', 0):,} positions in {position.get('seconds', 0):.0f} s |",
        f"| seed | {run.get('seed')} |", "",
        "![training loss](training.png)", "",
        "`run.json` has all settings, versions and hardware; `understudy.json` the hashes that bind draft and target.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def package(target: Path, draft: Path, data: Path) -> None:
    """Adds understudy.json and README.md to a recovered draft folder."""
    record = describe_draft(target, draft, data)
    draw_training((provenance.read(draft) or {}).get("losses", []), draft / "training.png")
    write_text(draft / "README.md", model_card(target, draft, record, read_data(data / DATA)))
    write_text(draft / "understudy.json", json.dumps(record, indent=2) + "\n")
