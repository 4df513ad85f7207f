"""Texts and prompt records -> token batches, and what is said about bad ones."""

import json

import pytest
import torch

from pruning import calibration
from pruning.settings import CalibrationSettings
from stages.errors import InputError

from . import pico

TOKENIZER = pico.tokenizer()


def write(tmp_path, *lines: str | bytes):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return file


def test_records_become_samples(tmp_path):
    messages = [{"role": "user", "content": "Hi ü"}]
    file = write(tmp_path, json.dumps({"prompt": "def f", "kind": "code"}), json.dumps({"messages": messages}))
    code, chat = calibration.read_samples(file, 16)
    assert TOKENIZER.decode(calibration.token_ids(code, TOKENIZER)) == "def f"
    assert TOKENIZER.decode(calibration.token_ids(chat, TOKENIZER)) == "<|user|>Hi ü<|end|><|assistant|>"


def test_a_conversation_that_ends_with_an_answer_asks_for_none():
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    ids = calibration.token_ids(calibration.Sample("x", messages=messages), TOKENIZER)
    assert TOKENIZER.decode(ids) == "<|user|>a<|end|><|assistant|>b<|end|>"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not valid JSON"),
        ('"text"', 'line 2 must be an object with either "prompt" or "messages"'),
        ("{}", "line 2 must be an object"),
        ('{"prompt": "a", "messages": []}', "line 2 must be an object with either"),
        ('{"prompt": ""}', 'line 2: "prompt" must be a text that is not empty'),
        ('{"prompt": 3}', 'line 2: "prompt" must be a text'),
        ('{"messages": []}', 'line 2: "messages" must be a list'),
        ('{"messages": [{"role": "user"}]}', 'line 2: each message needs a "role" and a "content"'),
        ('{"messages": ["hi"]}', "line 2: each message"),
        (b'{"prompt": "\xff"}', "line 2 is not UTF-8"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(tmp_path, line, said):
    file = write(tmp_path, '{"prompt": "good"}', line, '{"prompt": "good"}')
    with pytest.raises(InputError) as error:
        calibration.read_samples(file, 16)
    assert str(error.value).startswith(f"{file}: {said}")
    assert "\n" not in str(error.value)


def test_blank_lines_are_skipped_and_still_counted(tmp_path):
    file = write(tmp_path, '{"prompt": "a"}', "", "   ", '{"prompt": "b"}')
    assert [sample.source for sample in calibration.read_samples(file, 16)] == [f"{file}: line 1", f"{file}: line 4"]


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.txt: cannot be read"):
        calibration.read_samples(tmp_path / "nowhere.txt", 16)
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="empty"):
        calibration.read_samples(tmp_path / "empty.txt", 16)
    with pytest.raises(InputError, match="no calibration text"):
        calibration.load_samples([], 16)


def test_messages_without_a_chat_template_are_refused():
    plain = pico.tokenizer()
    plain.chat_template = None
    sample = calibration.Sample("p.jsonl: line 4", messages=({"role": "user", "content": "x"},))
    with pytest.raises(InputError, match=r'p.jsonl: line 4: "messages", but the target has no chat template'):
        calibration.token_ids(sample, plain)


def test_a_template_that_refuses_is_quoted():
    strict = pico.tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    sample = calibration.Sample("p.jsonl: line 4", messages=({"role": "user", "content": "x"},))
    with pytest.raises(InputError, match=r"line 4: .*roles must alternate"):
        calibration.token_ids(sample, strict)


def test_exactly_the_wanted_tokens_are_taken(tmp_path, text):
    settings = CalibrationSettings(calibration_tokens=100, sequence_length=32, batch_size=3)
    samples = calibration.read_samples(text, 32)
    taken = calibration.take(samples, TOKENIZER, 100, settings)
    assert taken.num_tokens == sum(batch.num_tokens for batch in taken.batches) == 100
    assert taken.num_samples == sum(len(batch.input_ids) for batch in taken.batches) == 4
    assert max(batch.input_ids.shape[1] for batch in taken.batches) <= 32
    again = calibration.take(samples, TOKENIZER, 100, settings)
    other = calibration.take(samples, TOKENIZER, 100, settings.model_copy(update={"seed": 1}))
    assert taken.sha256 == again.sha256 != other.sha256


def test_too_short_a_text_says_how_many_tokens_are_needed(text):
    samples = calibration.read_samples(text, 16)[:2]
    with pytest.raises(InputError, match=r"has 32 tokens .*, 500 are needed: .*calibration_tokens"):
        calibration.take(samples, TOKENIZER, 500, CalibrationSettings(sequence_length=16))


def test_padding_is_on_the_right_and_masked():
    batch = calibration.pad([[5, 6, 7], [8]])
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert torch.equal(batch.last(), torch.tensor([2, 0]))
