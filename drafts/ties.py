"""Greedy outputs that differ from plain's: is it a tie of bfloat16, or a fault?

Two steps of the engine that compute the same logits in batches of other shapes round differently in bfloat16. Where the
two best logits lie closer than that rounding, either token is the target's own greedy choice. So the target's logit gap
at the first differing token is computed in float32: a small gap is a tie, a large one is a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from drafts.distilling import rendered
from drafts.prompts import Prompt
from pruning.checkpoint import load_target

TIE_TOLERANCE = 0.25
"""Largest gap of two float32 logits that bfloat16 (8 bits of precision, logits of 8–32) may turn round."""


def first_difference(own: Sequence[int], plain: Sequence[int]) -> int:
    """Index of the first differing token; the shorter length when one continues the other."""
    for index, (a, b) in enumerate(zip(own, plain, strict=False)):
        if a != b:
            return index
    return min(len(own), len(plain))


def judge_differences(
    target: Path, records: Sequence[dict[str, Any]], prompts: dict[str, Prompt]
) -> list[dict[str, Any]]:
    """Adds ``logit_gap`` and ``tie`` to each record {method, prompt_id, kind, concurrency, text, plain_text}.

    The texts themselves are left out of the result.
    """
    if not records:
        return []
    model, tokenizer = load_target(target, dtype="float32")
    judged = []
    for record in records:
        prompt_ids = tokenizer(rendered(prompts[record["prompt_id"]], tokenizer), add_special_tokens=False)["input_ids"]
        sides = [tokenizer(record[name], add_special_tokens=False)["input_ids"] for name in ("text", "plain_text")]
        sides = [[*ids, tokenizer.eos_token_id] for ids in sides]
        index = first_difference(*sides)
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + sides[1][:index]])).logits[0, -1]
        tokens = [ids[min(index, len(ids) - 1)] for ids in sides]
        gap = abs(float(logits[tokens[0]] - logits[tokens[1]]))
        kept = {key: record[key] for key in ("method", "prompt_id", "kind", "concurrency")}
        judged.append({**kept, "first_difference": index, "logit_gap": round(gap, 4), "tie": gap <= TIE_TOLERANCE})
    return judged
