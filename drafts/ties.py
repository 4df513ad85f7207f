"""Greedy outputs that differ from plain's: is each a tie of the engine's type, or a fault?

Two steps of the engine that compute the same logits in batches of other shapes round differently. Where the best logits
lie closer than that rounding, either token is the target's own greedy choice; ``drafts.exact`` judges which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drafts.encoding import prompt_ids
from drafts.exact import ExactTarget
from drafts.prompts import Prompt
from stages.progress import log
from stages.provenance import hardware

KEPT = ("method", "prompt_id", "kind", "concurrency")
COPIES = 6
"""Memory that judging takes at most, in the target's weights as they are stored: of two bytes each, in float32 and in float64."""


def fits(target: Path) -> bool:
    """Whether the machine's memory holds what judging needs."""
    weights = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return COPIES * weights < hardware()["memory_gib"] * 2**30


def describe_differences(record: dict[str, Any]) -> str:
    """One sentence on greedy outputs that were not plain's.

    Args:
        record: of a comparison; what ``judge_differences`` found is its ``differing_outputs``.
    """
    records, dtype = record["differing_outputs"], record.get("dtype", "bfloat16")
    if all(row["identical_outputs"] is None for row in record["rows"]):
        return "Nothing was asked greedily, so outputs were not compared with plain's."
    if not records:
        return "Every greedy output was identical to plain's."
    number = f"{len(records)} greedy output{'s' if len(records) > 1 else ''} (each prompt and method counted once)"
    if not all(record.get("judged", True) for record in records):
        return f"{number} differ from plain's; whether at ties was not judged: the target does not fit into memory."
    ties = sum(bool(record["tie"]) for record in records)
    return (
        f"{number} differ from plain's; {ties} of them part at a tie of {dtype}, where either token is the target's own choice "
        "(`differing_outputs` in the JSON gives position, logit gap and rounding of each)."
    )


def judge_differences(
    target: Path, records: Sequence[dict[str, Any]], prompts: dict[str, Prompt], tokenizer: Any, dtype: str
) -> list[dict[str, Any]]:
    """Says of each record {method, prompt_id, kind, concurrency, text, plain_text} where and why it parts from plain's.

    ``dtype`` is what the engines computed in. The texts are left out of the result. ``tie`` is None where both are the same tokens,
    or where it could not be judged (``judged`` is False then): the target does not fit into this machine's memory twice.
    """
    if not records:
        return []
    if not fits(target):
        log(
            f"{len(records)} greedy outputs differ from plain's; {target} does not fit into memory to say whether at ties"
        )
        return [{**{key: record[key] for key in KEPT}, "tie": None, "judged": False} for record in records]
    exact = ExactTarget(target, dtype)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    judged = []
    for record in records:
        kept = {key: record[key] for key in KEPT}
        prompt = tuple(prompt_ids(prompts[record["prompt_id"]], tokenizer))
        end = (tokenizer.eos_token_id,)
        found = exact.difference(prompt, encode(record["plain_text"]) + end, encode(record["text"]) + end)
        judged.append({**kept, **(asdict(found) if found else {}), "tie": found.tie if found else None})
    return judged
