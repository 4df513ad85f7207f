"""Writes the target's own greedy continuations that loop, for a leg of training against them:
``python -m reference.looping_outputs --target reference/target --out build/looping.jsonl``.

The prompts are training prompts. Each line holds the token ids of prompt and continuation and the place of the loop;
``reference.train_target --looping-outputs`` lowers the chance of the repeated tokens (sequence-level unlikelihood,
arXiv 1908.04319, section 4.2).
"""

from __future__ import annotations

import json
from pathlib import Path

import typer

from drafts.encoding import prompt_ids
from drafts.looping import find_loop
from drafts.prompts import draw, read_prompts
from pruning.checkpoint import load_tokenizer
from reference.write_card import greedy
from stages.folders import write_text


def main(
    target: Path = typer.Option(Path("reference/target"), help="folder of the target that loops"),
    out: Path = typer.Option(..., help="JSONL file to write"),
    prompts: Path = typer.Option(Path("reference/prompts/train.jsonl"), help="training prompts"),
    max_prompts: int | None = typer.Option(None, help="a seeded sample of so many prompts"),
    max_tokens: int = typer.Option(128, help="length of the greedy continuations"),
) -> None:
    """Let the target continue the prompts greedily and keep what loops."""
    tokenizer = load_tokenizer(target)
    chosen = draw(read_prompts(prompts), max_prompts, 0)
    rows = []
    for prompt, text in zip(chosen, greedy(target, chosen, max_tokens, out.with_suffix(".log")), strict=True):
        output = tokenizer(text, add_special_tokens=False)["input_ids"]
        loop = find_loop(output)
        if loop is None:
            continue
        before = prompt_ids(prompt, tokenizer)
        period, repeated = loop
        rows.append(
            {"ids": before + output, "period": period, "first": len(before) + repeated.start, "count": len(repeated)}
        )
    write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out}: {len(rows)} of {len(chosen)} continuations loop")


if __name__ == "__main__":
    typer.run(main)
