from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from drafts.distilling import DATA, DistillSettings, distill, read_data
from drafts.examples import Example
from drafts.judging import JudgeSettings, acceptance_lengths, judge, judged
from pruning.checkpoint import load_model, load_target
from pruning.prune import PruneSettings, prune
from stages.errors import InputError
from tests.unit.pruning import pico


def test_lengths_of_drafts_that_are_always_or_never_right() -> None:
    assert acceptance_lengths([[1.0] * 12], 3, 0) == (2.0, 3.0, 4.0)
    assert acceptance_lengths([[0.0] * 12, [0.0] * 3], 3, 0) == (1.0, 1.0, 1.0)


def test_lengths_count_steps_as_an_engine_would() -> None:
    """Right, right, wrong, right, wrong, wrong: with two tokens the steps give 3, 2 and 1 tokens."""
    assert acceptance_lengths([[1.0, 1.0, 0.0, 1.0, 0.0, 0.0]], 2, 0) == (6 / 4, 6 / 3)


def test_an_even_chance_gives_the_geometric_length() -> None:
    lengths = acceptance_lengths([[0.5] * 20_000], 3, 1)
    assert lengths[2] == pytest.approx((1 - 0.5**4) / 0.5, rel=0.03)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("judging")
    target = pico.save(pico.LLAMA.model(), folder / "target")
    prompts = folder / "prompts.jsonl"
    lines = [{"kind": kind, "prompt": f"{kind} {i}"} for i in range(6) for kind in ("code", "chat")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = DistillSettings(backend="transformers", max_tokens=12, concurrency=8, temperatures=(0.0, 1.0))
    distill(target, prompts, folder / "data", settings)
    prune(target, folder / "pruned", PruneSettings(method="explicit", layers=(0, 3)))
    return {"target": target, "data": folder / "data", "pruned": folder / "pruned"}


def greedy_answers(made: dict[str, Path], tokenizer: Any, kind: str) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens of the prompt and of the answer of every greedy record of a kind."""
    for record in read_data(made["data"] / DATA):
        if (record["kind"], record["temperature"]) == (kind, 0.0):
            answer = tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
            answer += [tokenizer.eos_token_id] if record["finish_reason"] == "stop" else []
            yield tokenizer(record["prompt"])["input_ids"], answer


def test_the_target_is_a_perfect_draft_of_itself(made: dict[str, Path], tmp_path: Path) -> None:
    found = judge(made["target"], made["target"], made["data"], tmp_path / "e.json", JudgeSettings())
    assert {f.kind for f in found} == {"code", "chat"}
    for figures in found:
        assert figures.overlap == pytest.approx(1.0, abs=1e-5)
        assert figures.agreement == 1.0
    assert len(json.loads((tmp_path / "e.json").read_text())) == len(found)


def test_hits_are_the_answers_own_tokens(made: dict[str, Path]) -> None:
    """The target drafts for itself: it hits what it would say, and not a token in its place."""
    target, _ = load_target(made["target"], dtype="float32")
    tokens = [5, 6, 7]
    for _ in range(4):
        tokens.append(int(target(torch.tensor([tokens])).logits[0, -1].argmax()))
    other = [*tokens[:-1], tokens[-1] ^ 1]
    own, changed = judged(target, target, [Example(tuple(t), 3) for t in (tokens, other)], JudgeSettings())
    assert own.hits.tolist() == own.agrees.tolist() == changed.agrees.tolist() == [1, 1, 1, 1]
    assert changed.hits.tolist() == [1, 1, 1, 0]


def test_greedy_lengths_are_those_of_a_real_run(made: dict[str, Path]) -> None:
    """Against a loop that drafts token by token with transformers and lets the target judge."""
    found = judge(made["target"], made["pruned"], made["data"], None, JudgeSettings(num_speculative_tokens=3))
    target, tokenizer = load_target(made["target"], dtype="float32")
    draft = load_model(made["pruned"], dtype="float32")
    for figures in (f for f in found if f.temperature == 0):
        tokens = steps = 0
        for prompt, answer in greedy_answers(made, tokenizer, figures.kind):
            place = 0
            while place < len(answer):
                context, right = prompt + answer[:place], 0
                for _ in range(min(3, len(answer) - place)):
                    guess = int(draft(torch.tensor([context])).logits[0, -1].argmax())
                    if guess != int(target(torch.tensor([context])).logits[0, -1].argmax()):
                        break
                    context.append(guess)
                    right += 1
                place, steps = place + right + 1, steps + 1
            tokens += len(answer)
        assert figures.acceptance_lengths[2] == pytest.approx(tokens / steps)


def test_greedy_lengths_in_one_pass_are_those_of_a_real_run(made: dict[str, Path], tmp_path: Path) -> None:
    """Against a loop in which the draft reads the newest token and two masks, and the target judges what it says there."""
    mask = 7
    folder = tmp_path / "parallel"
    shutil.copytree(made["target"], folder)  # the target itself: it is right first, and lost at masks
    pico.edit_config(folder, pard_token=mask)
    settings = JudgeSettings(num_speculative_tokens=3)
    found = {(f.kind, f.temperature): f for f in judge(made["target"], folder, made["data"], None, settings)}
    target, tokenizer = load_target(made["target"], dtype="float32")
    for kind in ("code", "chat"):
        tokens = steps = 0
        for prompt, answer in greedy_answers(made, tokenizer, kind):
            place = 0
            while place < len(answer):
                context = prompt + answer[:place]
                guesses = target(torch.tensor([[*context, mask, mask]])).logits[0, -3:].argmax(-1).tolist()
                right = 0
                for guess, token in zip(guesses, answer[place:], strict=False):
                    if guess != int(target(torch.tensor([context])).logits[0, -1].argmax()):
                        break
                    context.append(token)  # a pico model's bytes are not all text, and come back as other tokens
                    right += 1
                place, steps = place + right + 1, steps + 1
            tokens += len(answer)
        assert found[kind, 0.0].parallel_lengths[2] == pytest.approx(tokens / steps)
        assert 1.9 < found[kind, 0.0].parallel_lengths[0] <= 2.0
    assert all(len(f.parallel_lengths) == 3 for f in found.values())


def test_no_answers_are_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no answers there"):
        judge(made["target"], made["pruned"], tmp_path, None, JudgeSettings())
