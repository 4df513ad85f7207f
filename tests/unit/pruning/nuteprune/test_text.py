"""Training text: windows, what is kept out, batches."""

import pytest

from pruning.calibration import Sample
from pruning.nuteprune import text
from stages.errors import InputError

from .. import pico

TOKENIZER = pico.tokenizer()
SAMPLES = [Sample("a", text="abcdefghij"), Sample("b", text="klm"), Sample("c", text="nopqrstuv")]


def test_windows_hold_all_the_text_but_single_tokens():
    found = text.windows(SAMPLES, TOKENIZER, 4)
    assert [TOKENIZER.decode(window) for window in found] == ["abcd", "efgh", "ij", "klm", "nopq", "rstu"]


def test_what_is_kept_out_does_not_depend_on_the_rest():
    found = text.windows([Sample("x", text="".join(chr(97 + i % 26) * (i % 5 + 1) for i in range(300)))], TOKENIZER, 8)
    training, check = text.split(found, 0.3, 16)
    assert sorted(training + check) == sorted(found)
    assert set(text.split(found[:20], 0.3, 16)[1]) <= set(check)


def test_too_little_text_says_how_much_is_needed():
    with pytest.raises(InputError, match="20 tokens to train on, 64 are needed"):
        text.split([(1,) * 10, (2,) * 10], 0.0, 64)


def test_an_epoch_holds_every_window_once_in_an_order_of_its_own():
    found = [tuple(range(i + 2)) for i in range(40)]
    for number in (0, 1):
        rows = []
        for batch in text.epoch(found, 64, seed=0, number=number):
            assert batch.input_ids.numel() <= 64
            rows += [
                tuple(row[mask.bool()].tolist())
                for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
        assert sorted(rows) == sorted(found)
    first, again, second = (
        [batch.input_ids.tolist() for batch in text.epoch(found, 64, 0, number)] for number in (0, 0, 1)
    )
    assert first == again != second
