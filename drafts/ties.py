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


def judge_differences(
    target: Path, records: Sequence[dict[str, Any]], prompts: dict[str, Prompt], tokenizer: Any, dtype: str
) -> list[dict[str, Any]]:
    """Says of each record {method, prompt_id, kind, concurrency, text, plain_text} where and why it parts from plain's.

    ``dtype`` is what the engines computed in. The texts are left out of the result. ``tie`` is None where both are the same tokens.
    """
    if not records:
        return []
    exact = ExactTarget(target, dtype)

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    judged = []
    for record in records:
        kept = {key: record[key] for key in ("method", "prompt_id", "kind", "concurrency")}
        prompt = tuple(prompt_ids(prompts[record["prompt_id"]], tokenizer))
        end = (tokenizer.eos_token_id,)
        found = exact.difference(prompt, encode(record["plain_text"]) + end, encode(record["text"]) + end)
        judged.append({**kept, **(asdict(found) if found else {}), "tie": found.tie if found else None})
    return judged
