"""Judges a draft without an engine: how much of the target's own answers it would have proposed right.

Greedy acceptance is exact: a draft token counts only if all before it were accepted, so what the draft saw is the target's
answer itself, and one pass over that answer tells every proposal it would have made. At a temperature each position
accepts with probability sum_x min(p, q) (arXiv 2211.17192), drawn here with a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from drafts.distilling import DATA, read_answers
from drafts.examples import Example, batches, make_example
from drafts.losses import agreement, overlap
from drafts.parallel import CONFIG_KEY, with_masks
from drafts.teacher import Teacher, decoder_and_head
from drafts.trained_on import refuse_known
from drafts.training import Student
from pruning.checkpoint import load_model, load_target
from stages.errors import InputError
from stages.folders import write_text
from stages.hashing import checkpoint_hash
from stages.progress import log, progress
from stages.settings import Settings


class JudgeSettings(Settings):
    """How a draft is judged.

    Attributes:
        num_speculative_tokens: the largest K that acceptance lengths are given for.
        seed: of the draws at temperatures above 0.
    """

    num_speculative_tokens: int = Field(default=8, ge=1)
    batch_tokens: int = Field(default=4096, ge=64)
    max_length: int = Field(default=512, ge=16)
    seed: int = 0


class Figures(Settings):
    """Judgement of one kind of answers at one temperature.

    Attributes:
        overlap: mean of sum_x min(p, q) over answer positions, at the answers' temperature (greedy ones: at 1).
        agreement: share of answer positions where the most likely tokens are equal.
        acceptance_lengths: mean acceptance length (bonus token included) with 1, 2, … draft tokens.
        greedy_drafting_lengths: likewise for a draft that proposes its most likely token at any temperature, which is accepted
            where it is the token that the target drew.
        parallel_lengths: likewise for a draft that proposes all tokens in one pass; empty where it was not trained to.
    """

    kind: str
    temperature: float
    positions: int
    overlap: float
    agreement: float
    acceptance_lengths: tuple[float, ...]
    greedy_drafting_lengths: tuple[float, ...]
    parallel_lengths: tuple[float, ...] = ()


@dataclass
class Judged:
    """What every position [T] of one answer says: see ``Figures``; ``hits`` are 1 where the draft's favourite is the answer."""

    overlaps: Tensor
    agrees: Tensor
    hits: Tensor


Chances = Sequence[float] | Sequence[Sequence[float]]
"""For each position of an answer the chance that a draft token is accepted there: one number, whatever was drafted before, or one
for each place that the token can have in a draft that begins at that position."""


def _chances_of(chances: Chances, place: int, tokens: int) -> Sequence[float]:
    """Chances of acceptance of the draft tokens that follow a place."""
    own = chances[place]
    if isinstance(own, float):
        return chances[place : place + tokens]  # type: ignore[return-value]
    return own[: min(tokens, len(chances) - place)]


def acceptance_lengths(accepted: Sequence[Chances], most: int, seed: int) -> tuple[float, ...]:
    """Mean acceptance length with 1 … ``most`` draft tokens.

    Args:
        accepted: for each answer, the chances at each of its positions.
    """
    found = []
    for tokens in range(1, most + 1):
        draw = random.Random(seed)
        steps = 0
        for chances in accepted:
            place = 0
            while place < len(chances):
                steps += 1
                judged = _chances_of(chances, place, tokens)
                right = next((i for i, chance in enumerate(judged) if draw.random() >= chance), len(judged))
                place += right + 1
        found.append(sum(map(len, accepted)) / steps if steps else 0.0)
    return tuple(found)


@torch.no_grad()
def judged(
    target: Any, draft: Any, examples: Sequence[Example], settings: JudgeSettings, temperatures: Sequence[float] = ()
) -> list[Judged]:
    """The answer positions of every example.

    Args:
        temperatures: that the examples were answered at; overlaps are those of both models at it, and at 1 where it is 0 or none.
    """
    sharper = _sharper(examples, temperatures)
    teacher = Teacher(target, 0)
    decoder, head = decoder_and_head(draft.eval())
    parts: list[dict[int, list[float]]] = [{} for _ in examples]
    with progress("judging", len(examples), "answers") as advance:
        for batch in batches(examples, settings.batch_tokens, 0.0, settings.seed, 0):
            hidden = decoder(input_ids=batch.ids_BT, use_cache=False).last_hidden_state
            student = head(hidden[batch.rows_N, batch.columns_N])
            logits = teacher.logits(batch)
            scale = sharper[torch.tensor(batch.indices)][batch.rows_N, None]
            hits = (student.argmax(-1) == batch.labels_N).float()
            figures = torch.stack(
                [overlap(scale * student, scale * logits), agreement(student, logits), hits], 1
            ).tolist()
            for row, column, found in zip(batch.rows_N.tolist(), batch.columns_N.tolist(), figures, strict=True):
                parts[batch.indices[row]][column] = found
            advance(len(batch.indices))
    return [Judged(*torch.tensor([own[c] for c in sorted(own)]).reshape(-1, 3).unbind(1)) for own in parts]


def _sharper(examples: Sequence[Example], temperatures: Sequence[float]) -> Tensor:
    """What each example's logits are multiplied with."""
    return torch.tensor([1 / t if t > 0 else 1.0 for t in temperatures or [1.0] * len(examples)])


@torch.no_grad()
def judged_in_one_pass(
    target: Any,
    draft: Any,
    examples: Sequence[Example],
    token: int,
    settings: JudgeSettings,
    temperatures: Sequence[float] = (),
) -> list[tuple[Tensor, Tensor]]:
    """Overlaps and agreements [T, K] of every example: at each answer position, the K tokens that one pass proposes from there."""
    teacher, student = Teacher(target, 0), Student(draft.eval())
    most, sharper = settings.num_speculative_tokens, _sharper(examples, temperatures)
    found = [torch.zeros(2, len(e.ids) - max(e.prompt_length, 1), most) for e in examples]
    with progress("judging one pass", len(examples), "answers") as advance:
        for text in batches(examples, max(64, settings.batch_tokens // most), 0.0, settings.seed, 0):
            batch = with_masks(text, most, 1.0, token, random.Random(settings.seed))
            proposed, logits = student(batch), teacher.logits(batch)
            scale = sharper[torch.tensor(batch.indices)][batch.rows_N, None]
            both = torch.stack([overlap(scale * proposed, scale * logits), agreement(proposed, logits)], 1)
            starts = batch.columns_N - batch.depths_P
            for row, index in enumerate(batch.indices):
                own = batch.rows_N == row
                first = max(examples[index].prompt_length, 1) - 1
                found[index][:, starts[own] - first, batch.depths_P[own]] = both[own].t()
            advance(len(batch.indices))
    return [(overlaps, agrees) for overlaps, agrees in found]


def judge(target: Path, draft: Path, data: Path, out: Path | None, settings: JudgeSettings) -> list[Figures]:
    """Judges a draft on answers that 'distill' wrote for prompts it was not trained on; writes ``out`` (JSON) if given.

    Raises:
        InputError: there are no answers, another target gave them, or the draft was trained on one of the prompts.
    """
    model, tokenizer = load_target(target, dtype="float32")
    records = read_answers(data, checkpoint_hash(target))
    refuse_known(((record["id"], record.get("source")) for record in records), draft)
    encoded = [(record, make_example(record, tokenizer, settings.max_length)) for record in records]
    usable = [(record, example) for record, example in encoded if example is not None]
    if not usable:
        raise InputError(f"{data / DATA}: no answers there; run 'understudy distill' on prompts kept from training")
    examples = [example for _, example in usable]
    found = []
    student = load_model(draft, dtype="float32")
    temperatures = [float(record["temperature"]) for record, _ in usable]
    answers = judged(model, student, examples, settings, temperatures)
    token = getattr(student.config, CONFIG_KEY, None)
    at_once = judged_in_one_pass(model, student, examples, token, settings, temperatures) if token is not None else []
    for kind, temperature in sorted({(record["kind"], record["temperature"]) for record, _ in usable}):
        own = [
            answer
            for (record, _), answer in zip(usable, answers, strict=True)
            if (record["kind"], record["temperature"]) == (kind, temperature) and len(answer.hits)
        ]
        chances = [answer.agrees if temperature == 0 else answer.overlaps for answer in own]
        most, seed = settings.num_speculative_tokens, settings.seed
        passes = [
            agrees if temperature == 0 else overlaps
            for (record, _), (overlaps, agrees) in zip(usable, at_once, strict=bool(at_once))
            if (record["kind"], record["temperature"]) == (kind, temperature) and len(agrees)
        ]
        found.append(
            Figures(
                kind=kind,
                temperature=temperature,
                positions=sum(map(len, chances)),
                overlap=float(torch.cat([answer.overlaps for answer in own]).mean()),
                agreement=float(torch.cat([answer.agrees for answer in own]).mean()),
                acceptance_lengths=acceptance_lengths([c.tolist() for c in chances], most, seed),
                greedy_drafting_lengths=acceptance_lengths([answer.hits.tolist() for answer in own], most, seed),
                parallel_lengths=acceptance_lengths([c.tolist() for c in passes], most, seed) if passes else (),
            )
        )
    if out is not None:
        write_text(out, json.dumps([figures.model_dump() for figures in found], indent=2) + "\n")
    for f in found:
        lengths = " ".join(f"{length:.2f}" for length in f.acceptance_lengths)
        log(f"{f.kind}, T = {f.temperature:g}: overlap {f.overlap:.3f}, agreement {f.agreement:.3f}, lengths {lengths}")
        if f.parallel_lengths:
            log(f"    in one pass: {' '.join(f'{length:.2f}' for length in f.parallel_lengths)}")
    return found
