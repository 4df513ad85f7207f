import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from drafts.distilling import DistillSettings, read_answers, to_ask
from drafts.encoding import fitting, prompt_ids
from drafts.prompts import Prompt
from stages.errors import InputError

TARGET = Path(__file__).parents[3] / "reference" / "target"
TEXT = Prompt(prompt="def f(x):")
CHAT = Prompt.model_validate({"messages": [{"role": "user", "content": "what does f do?"}]})


def test_text_gets_the_special_tokens_that_serving_adds_and_a_chat_those_of_its_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    begin = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    assert prompt_ids(TEXT, tokenizer)[0] == begin
    assert prompt_ids(CHAT, tokenizer)[0] == tokenizer.convert_tokens_to_ids("<|user|>")


def test_prompts_without_room_for_an_answer_are_left_out() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    long = Prompt(prompt="x = 1\n" * 200)
    assert fitting([TEXT, long, CHAT], tokenizer, 64, 32) == [TEXT, CHAT]
    with pytest.raises(InputError, match="max_model_len 64 leaves 32 tokens"):
        fitting([long], tokenizer, 64, 32)


def test_a_resumed_run_asks_with_the_seeds_and_temperatures_of_the_first() -> None:
    prompts = [Prompt(prompt=str(i % 3)) for i in range(6)]
    settings = DistillSettings(temperatures=(0.0, 1.0), seed=5)
    whole = {asked.place: asked for group in to_ask(prompts, settings, set()) for asked in group}
    rest = [asked for group in to_ask(prompts, settings, {0, 3}) for asked in group]
    assert sorted(whole) == [0, 1, 2, 3, 4, 5]
    assert {asked.place for asked in rest} == {1, 2, 4, 5}
    assert all(whole[asked.place] == asked for asked in rest)
    assert [(whole[i].temperature, whole[i].seed) for i in range(3)] == [(0.0, 5), (1.0, 6), (0.0, 7)]


def test_answers_of_another_target_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run 'understudy distill' first"):
        read_answers(tmp_path, "a" * 64)
    (tmp_path / "data.jsonl").write_text(json.dumps({"target_sha256": "b" * 64}) + "\n")
    with pytest.raises(InputError, match="line 1: answered by the target bbbbbbbbbbbb, not by aaaaaaaaaaaa"):
        read_answers(tmp_path, "a" * 64)
