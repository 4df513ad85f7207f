"""Mask positions: what the draft sees in training must be what it sees when it is served."""

import random
from pathlib import Path

import pytest
import torch

from drafts.examples import Example, collate
from drafts.parallel import CONFIG_KEY, MaskedBatch, expected_length, mask_token, reached, with_masks
from drafts.training import RecoverSettings, Student
from stages.errors import InputError
from tests.unit.pruning import pico

EXAMPLES = [Example(tuple(range(10, 30)), 6), Example(tuple(range(40, 53)), 4), Example(tuple(range(60, 80)), 12)]
TOKEN = 7


def masked(num_tokens: int = 4, keep: float = 1.0, prompt_weight: float = 0.0) -> MaskedBatch:
    return with_masks(collate(EXAMPLES, [0, 1, 2], prompt_weight), num_tokens, keep, TOKEN, random.Random(1))


@pytest.mark.parametrize("case", [pico.LLAMA, pico.CASES[-1]], ids=lambda case: case.name)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_mask_sees_what_it_will_see_when_served(case: pico.Pico, attention: str) -> None:
    """Served, the draft reads the text up to its start and then the masks, one after another, in one causal pass."""
    model = case.model()
    model.set_attn_implementation(attention)
    batch = masked()
    with torch.no_grad():
        found = Student(model)(batch)
        for row, example in enumerate(EXAMPLES):
            for start in range(example.prompt_length - 1, len(example.ids) - 1):
                served = model(torch.tensor([[*example.ids[: start + 1], TOKEN, TOKEN, TOKEN]])).logits[0, start:]
                own = (batch.rows_N == row) & (batch.columns_N - batch.depths_P == start)
                assert own.sum() == min(4, len(example.ids) - 1 - start)
                torch.testing.assert_close(found[own], served[batch.depths_P[own]], rtol=1e-4, atol=1e-4)


def test_text_is_judged_as_without_masks() -> None:
    model = pico.LLAMA.model()
    model.set_attn_implementation("eager")
    text = collate(EXAMPLES, [0, 1, 2], 0.5)
    batch = with_masks(text, 3, 0.5, TOKEN, random.Random(0))
    with torch.no_grad():
        alone, beside = Student(model)(text), Student(model)(batch)
    torch.testing.assert_close(beside[: len(alone)], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(batch.weights_N[: len(alone)], text.weights_N)


def test_masks_have_the_label_and_weight_of_the_position_they_stand_for() -> None:
    batch = masked(prompt_weight=0.5)
    for row, column, label, weight in zip(
        batch.rows_N.tolist(), batch.columns_N.tolist(), batch.labels_N.tolist(), batch.weights_N.tolist(), strict=True
    ):
        example = EXAMPLES[row]
        assert label == example.ids[column + 1]
        assert weight == (1.0 if column + 1 >= example.prompt_length else 0.5)


def test_each_depth_keeps_its_share_and_nothing_without_what_comes_before() -> None:
    batch = masked(num_tokens=4, keep=0.5, prompt_weight=0.5)
    counts = torch.bincount(batch.depths_P).tolist()
    assert counts[0] == sum(len(example.ids) - 1 for example in EXAMPLES)
    for depth in (1, 2, 3):
        assert 0 < counts[depth] <= round(0.5 * counts[depth - 1])
    for index, before in enumerate(batch.before_P.tolist()):
        if batch.depths_P[index] == 0:
            assert before == -1
            continue
        assert batch.depths_P[before] == batch.depths_P[index] - 1
        assert batch.columns_N[before] == batch.columns_N[index] - 1
        assert batch.rows_N[before] == batch.rows_N[index]


def test_a_position_is_reached_when_all_before_it_are_accepted() -> None:
    batch = masked()
    chances = reached(torch.full((batch.num_tokens,), 0.5), batch)
    assert torch.equal(chances, 0.5 ** batch.depths_P.float())


def test_batches_with_masks_are_longer_by_what_is_kept() -> None:
    assert expected_length(4, 0.5) == 1 + 0.5 + 0.25 + 0.125


def test_the_mask_is_a_token_that_no_text_has() -> None:
    tokenizer = pico.tokenizer()
    config = pico.LLAMA.config()
    assert tokenizer.decode([mask_token(config, tokenizer)]) == "\ufffd"
    assert mask_token(pico.LLAMA.config(vocab_size=pico.VOCABULARY + 8), tokenizer) == pico.VOCABULARY
    setattr(config, CONFIG_KEY, 3)
    assert mask_token(config, tokenizer) == 3

    class Vocabulary(dict[str, int]):
        def get_vocab(self) -> dict[str, int]:
            return self

    with_fallback = Vocabulary({"<0xFF>": 0, "\u00ff": 1})
    assert mask_token(pico.LLAMA.config(vocab_size=2), with_fallback) == 0
    for letters in ({"a": 0, "b": 1}, {"a": 0, "\u00ff": 1}):
        with pytest.raises(InputError, match="no token that no text uses"):
            mask_token(pico.LLAMA.config(vocab_size=2), Vocabulary(letters))


def test_settings_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ordinary drafting"):
        RecoverSettings(parallel_tokens=1)
    with pytest.raises(ValueError, match="needs the target's logits"):
        RecoverSettings(parallel_tokens=3, kl_weight=0, ce_weight=1)
