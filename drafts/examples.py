"""Training examples from self-distilled data: token ids, loss weights (shifted with the labels), batches of like length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from drafts.encoding import prompt_ids
from drafts.prompts import Prompt
from stages.errors import InputError
from stages.hashing import text_hash


@dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    Attributes:
        ids: token ids of prompt and answer, end token included where the target ended by itself.
        prompt_length: how many of them are the prompt's.
    """

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True)
class Batch:
    """B padded sequences of T tokens and the N positions that are judged.

    Attributes:
        ids_BT: int64, padded on the right (causal attention never looks there).
        rows_N, columns_N: positions whose *next* token is predicted.
        labels_N: that next token.
        weights_N: its weight in the loss.
        indices: which examples the rows are.
    """

    ids_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    labels_N: Tensor
    weights_N: Tensor
    indices: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Judged positions."""
        return len(self.labels_N)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        ids, rows, columns = self.ids_BT.to(device), self.rows_N.to(device), self.columns_N.to(device)
        return Batch(ids, rows, columns, self.labels_N.to(device), self.weights_N.to(device), self.indices)

    def of_rows(self, rows: range) -> Batch:
        """The batch of some neighbouring rows, padded as before."""
        kept = self.judged_in(rows)
        return Batch(
            self.ids_BT[rows.start : rows.stop], self.rows_N[kept] - rows.start, self.columns_N[kept], self.labels_N[kept],
            self.weights_N[kept], self.indices[rows.start : rows.stop],
        )  # fmt: skip

    def judged_in(self, rows: range) -> Tensor:
        """Which judged positions lie in some neighbouring rows, bool [N]."""
        return (self.rows_N >= rows.start) & (self.rows_N < rows.stop)


def make_example(record: dict[str, Any], tokenizer: Any, max_length: int) -> Example | None:
    """Encodes one data record; None when the answer is empty or the prompt alone fills ``max_length``."""
    prompt = Prompt(prompt=record.get("prompt"), messages=record.get("messages"), kind=record["kind"])
    asked = prompt_ids(prompt, tokenizer)
    answer_ids = tokenizer(record["answer"], add_special_tokens=False)["input_ids"]
    if record.get("finish_reason") == "stop" and tokenizer.eos_token_id is not None:
        answer_ids = [*answer_ids, tokenizer.eos_token_id]
    if not answer_ids or len(asked) >= max_length:
        return None
    return Example(tuple([*asked, *answer_ids][:max_length]), len(asked))


def split_examples(
    records: Sequence[dict[str, Any]], tokenizer: Any, max_length: int, check_share: float
) -> tuple[list[Example], list[Example]]:
    """Training and check examples; a prompt goes to the check by the hash of its id, whatever else is in the data."""
    training: list[Example] = []
    check: list[Example] = []
    for record in records:
        example = make_example(record, tokenizer, max_length)
        if example is None:
            continue
        share = int(text_hash(record["id"])[:8], 16) / 2**32
        (check if share < check_share else training).append(example)
    if not training:
        raise InputError("the data has no usable answer: each was empty or its prompt filled the whole context")
    return training, check


def collate(examples: Sequence[Example], indices: Sequence[int], prompt_weight: float) -> Batch:
    """Pads examples into one batch. Position t is judged on token t + 1: weight 1 if that is an answer token."""
    chosen = [examples[i] for i in indices]
    length = max(len(example.ids) for example in chosen)
    ids_BT = torch.zeros(len(chosen), length, dtype=torch.int64)
    rows, columns, labels, weights = [], [], [], []
    for row, example in enumerate(chosen):
        ids_BT[row, : len(example.ids)] = torch.tensor(example.ids)
        first = 0 if prompt_weight > 0 else example.prompt_length - 1
        for column in range(max(first, 0), len(example.ids) - 1):
            rows.append(row)
            columns.append(column)
            labels.append(example.ids[column + 1])
            weights.append(1.0 if column + 1 >= example.prompt_length else prompt_weight)
    return Batch(
        ids_BT, torch.tensor(rows), torch.tensor(columns), torch.tensor(labels), torch.tensor(weights), tuple(indices)
    )


def batches(
    examples: Sequence[Example], batch_tokens: int, prompt_weight: float, seed: int, epoch: int
) -> Iterator[Batch]:
    """One epoch of batches of at most ``batch_tokens`` padded tokens, the same for the same seed and epoch.

    Examples of like length share a batch; batches come in random order.
    """
    rng = random.Random(f"{seed}-{epoch}")
    order = sorted(range(len(examples)), key=lambda i: (len(examples[i].ids) // 16, rng.random()))
    groups: list[list[int]] = [[]]
    longest = 0
    for index in order:
        longest = max(longest, len(examples[index].ids))
        if groups[-1] and (len(groups[-1]) + 1) * longest > batch_tokens:
            groups.append([])
            longest = len(examples[index].ids)
        groups[-1].append(index)
    rng.shuffle(groups)
    for group in groups:
        yield collate(examples, group, prompt_weight)
