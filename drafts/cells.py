"""The rows of tables that are made from a comparison's cells (method × kind × concurrency × temperature × turn)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from drafts.blocks import Cell, Condition
from drafts.client import Answer
from drafts.looping import loops

Tokenize = Callable[[str], Sequence[int]]


def groups(cells: Sequence[Cell]) -> Iterator[tuple[str, Condition, list[Cell], list[Cell]]]:
    """(method, condition, its cells, plain's cells), both by turn."""
    for method, condition in dict.fromkeys((cell.method, cell.condition) for cell in cells):
        same = [cell for cell in cells if cell.condition == condition]
        own = sorted((c for c in same if c.method == method), key=lambda c: c.turn)
        yield method, condition, own, sorted((c for c in same if c.method == "plain"), key=lambda c: c.turn)


def acceptance(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Acceptance over all answers: ratios of sums, never averages of ratios; None where nothing was drafted."""
    records = [answer.speculation for answer in answers if answer.speculation]
    drafts = sum(r.num_drafts for r in records)
    proposed = sum(r.num_draft_tokens for r in records)
    accepted = sum(r.num_accepted_tokens for r in records)
    return {
        "num_drafts": drafts,
        "num_draft_tokens": proposed,
        "num_accepted_tokens": accepted,
        "acceptance_rate": accepted / proposed if proposed else None,
        "mean_acceptance_length": 1 + accepted / drafts if drafts else None,
    }


def histogram(answers: Sequence[Answer]) -> list[int]:
    """Steps that accepted exactly 0, 1, … tokens, summed over the answers."""
    rows = [answer.speculation.histogram for answer in answers if answer.speculation]
    width = max(map(len, rows), default=0)
    return [sum(row[i] for row in rows if i < len(row)) for i in range(width)]


def _rate(cells: Sequence[Cell]) -> float:
    """Output tokens per second of wall time, over all cells."""
    return sum(cell.num_tokens for cell in cells) / sum(cell.wall_s for cell in cells)


def faster(own: Sequence[Cell], plain: Sequence[Cell]) -> float:
    """Speed-up in a closed loop: ratio of output tokens per second of wall time, first tokens included."""
    return _rate(own) / _rate(plain)


def _seconds_per_token(cells: Sequence[Cell]) -> float:
    """Seconds of requests, from their arrival to their last token, for each output token."""
    answers = [answer for cell in cells for answer in cell.answers]
    return sum(answer.e2e_s for answer in answers) / sum(answer.completion_tokens for answer in answers)


def _sooner(own: Sequence[Cell], plain: Sequence[Cell]) -> float:
    """Ratio of request times for each output token: sampled answers differ in length from method to method."""
    return _seconds_per_token(plain) / _seconds_per_token(own)


def _rate_without(cells: Sequence[Cell], left_out: Sequence[set[str]]) -> float | None:
    """Output tokens per second of request time, over the answers whose prompts are not left out in that turn."""
    kept = [
        answer
        for cell, looping in zip(cells, left_out, strict=True)
        for answer in cell.answers
        if answer.prompt_id not in looping
    ]
    seconds = sum(answer.e2e_s for answer in kept)
    return sum(answer.completion_tokens for answer in kept) / seconds if seconds else None


def _without_loops(own: Sequence[Cell], plain: Sequence[Cell], looping: Sequence[set[str]]) -> float | None:
    """What leaving prompts out changes about the ratio of rates to plain's; 1 if there are none, None if nothing else is left."""
    nothing: list[set[str]] = [set()] * len(own)
    rates = [_rate_without(cells, left_out) for left_out in (looping, nothing) for cells in (own, plain)]
    if not all(rates):
        return None
    calm, base_calm, everything, base = (rate for rate in rates if rate)
    return (calm / base_calm) / (everything / base)


def _looping(cells: Sequence[Cell], tokenize: Tokenize) -> list[set[str]]:
    """The prompts of each cell whose output loops."""
    return [{answer.prompt_id for answer in cell.answers if loops(tokenize(answer.text))} for cell in cells]


def row_of(method: str, condition: Condition, own: list[Cell], plain: list[Cell], tokenize: Tokenize) -> dict[str, Any]:
    """One row of the table.

    ``speedup`` is tokens per second over plain's, both over all turns; low and high are the extremes of single turns. In
    an open loop, where arrivals set the tokens per second, it is plain's time of requests for each output token over this method's.
    ``speedup_without_loops`` leaves out the prompts whose output looped with either method in that turn: ``speedup``, times what
    that changes about tokens per second of request time.
    ``identical_outputs`` compares texts of equal prompts with plain's in the same turn (greedy only).
    """
    answers = [answer for cell in own for answer in cell.answers]
    gain = faster if condition.rate is None else _sooner
    ratios = [gain([cell], [base]) for cell, base in zip(own, plain, strict=True)]
    looping = _looping(own, tokenize)
    either = [mine | theirs for mine, theirs in zip(looping, _looping(plain, tokenize), strict=True)]
    overall = gain(own, plain)
    pairs = [
        (a, b) for cell, base in zip(own, plain, strict=True) for a, b in zip(cell.answers, base.answers, strict=True)
    ]
    tpots = [answer.tpot_s for answer in answers if answer.tpot_s is not None]
    num_prompts = len({answer.prompt_id for answer in answers})
    return {
        "method": method, "kind": condition.kind, "concurrency": condition.concurrency,
        "temperature": condition.temperature, "rate": condition.rate, "num_prompts": num_prompts,
        "repeats": len(answers) // num_prompts, "turns": len(own),
        "output_tokens_per_s": _rate(own),
        "tpot_s": statistics.median(tpots) if tpots else None,
        "ttft_s": statistics.median(answer.ttft_s for answer in answers),
        "e2e_s": statistics.median(answer.e2e_s for answer in answers),
        "e2e_s_per_token": _seconds_per_token(own),
        "under_way": sum(answer.e2e_s for answer in answers) / sum(cell.wall_s for cell in own),
        "speedup": overall, "speedup_low": min(ratios), "speedup_high": max(ratios),
        "speedup_without_loops": overall * change if (change := _without_loops(own, plain, either)) else None,
        **acceptance(answers), "acceptance_histogram": histogram(answers),
        "identical_outputs": sum(a.text == b.text for a, b in pairs) / len(pairs) if condition.temperature == 0 else None,
        "looping_outputs": sum(map(len, looping)) / len(answers),
        "output_tokens": sum(answer.completion_tokens for answer in answers),
    }  # fmt: skip


def rows_of(cells: Sequence[Cell], tokenize: Tokenize) -> list[dict[str, Any]]:
    """All rows of the table; plain must be among the methods."""
    return [row_of(method, condition, own, plain, tokenize) for method, condition, own, plain in groups(cells)]


def differing(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Greedy answers that are not plain's, each prompt and method once: {method, prompt_id, kind, text, plain_text}."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for method, condition, own, plain in groups(cells):
        if condition.temperature != 0 or method == "plain":
            continue
        for cell, base in zip(own, plain, strict=True):
            for a, b in zip(cell.answers, base.answers, strict=True):
                if a.text != b.text:
                    record = {
                        "method": method,
                        "prompt_id": a.prompt_id,
                        "kind": a.kind,
                        "concurrency": condition.concurrency,
                    }
                    found.setdefault((method, a.prompt_id), {**record, "text": a.text, "plain_text": b.text})
    return list(found.values())
