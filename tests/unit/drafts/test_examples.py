from pathlib import Path

import pytest
import torch

from drafts.examples import Example, batches, collate, make_example, split_examples
from stages.errors import InputError
from tests.unit.pruning import pico


def test_weights_are_shifted_with_the_labels() -> None:
    """Prompt 10 11 12, answer 20 21: the answer's first token is judged at the prompt's last position."""
    batch = collate([Example((10, 11, 12, 20, 21), 3), Example((30, 40), 1)], [0, 1], prompt_weight=0.0)
    judged = list(zip(batch.rows_N.tolist(), batch.columns_N.tolist(), batch.labels_N.tolist(), strict=True))
    assert judged == [(0, 2, 20), (0, 3, 21), (1, 0, 40)]
    assert batch.weights_N.tolist() == [1.0, 1.0, 1.0]
    assert batch.ids_BT.tolist() == [[10, 11, 12, 20, 21], [30, 40, 0, 0, 0]]


def test_prompt_positions_count_with_their_own_weight() -> None:
    batch = collate([Example((10, 11, 12, 20, 21), 3)], [0], prompt_weight=0.25)
    assert batch.labels_N.tolist() == [11, 12, 20, 21]
    assert batch.weights_N.tolist() == [0.25, 0.25, 1.0, 1.0]


def test_every_label_is_the_next_token() -> None:
    examples = [Example(tuple(range(i, i + 5 + i % 7)), 2) for i in range(40)]
    for batch in batches(examples, 64, 0.5, seed=0, epoch=0):
        assert torch.equal(batch.labels_N, batch.ids_BT[batch.rows_N, batch.columns_N + 1])
        assert batch.ids_BT.numel() <= 64


def test_an_epoch_visits_every_example_once_and_is_reproducible() -> None:
    examples = [Example(tuple(range(3 + i % 9)), 1) for i in range(50)]
    first = [batch.indices for batch in batches(examples, 32, 0.0, seed=1, epoch=0)]
    assert sorted(i for indices in first for i in indices) == list(range(50))
    assert first == [batch.indices for batch in batches(examples, 32, 0.0, seed=1, epoch=0)]
    assert first != [batch.indices for batch in batches(examples, 32, 0.0, seed=1, epoch=1)]


def record(**changes: object) -> dict[str, object]:
    return {"id": "a", "kind": "code", "prompt": "def f", "answer": "(x):", "finish_reason": "stop", **changes}


def test_the_end_token_is_learned_only_where_the_target_ended() -> None:
    tokenizer = pico.tokenizer()
    ended = make_example(record(), tokenizer, 64)
    cut = make_example(record(finish_reason="length"), tokenizer, 64)
    assert ended is not None
    assert cut is not None
    assert ended.ids == (*cut.ids, tokenizer.eos_token_id)
    assert ended.prompt_length == 5


def test_answers_without_use_are_left_out_and_none_at_all_is_refused() -> None:
    tokenizer = pico.tokenizer()
    assert make_example(record(answer="", finish_reason="length"), tokenizer, 64) is None
    assert make_example(record(), tokenizer, 5) is None
    with pytest.raises(InputError, match="no usable answer"):
        split_examples([record(answer="", finish_reason="length")], tokenizer, 64, 0.1)


def test_the_check_split_follows_the_prompt(tmp_path: Path) -> None:
    tokenizer = pico.tokenizer()
    records = [record(id=f"p{i // 2}", answer=f"answer {i}") for i in range(200)]
    training, check = split_examples(records, tokenizer, 64, 0.2)
    assert len(training) + len(check) == 200
    assert 10 <= len(check) <= 80
    assert len(check) % 2 == 0
