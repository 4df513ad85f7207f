import json
from pathlib import Path

import pytest

from drafts.prompts import Prompt, draw, prompts_hash, read_prompts, refuse_overlap, sample
from stages.errors import InputError


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: must be an object"),
        ('{"prompt": ""}', "line 2: 'prompt'"),
        ('{"promt": "a"}', "line 2: unknown key 'promt': did you mean 'prompt'"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "line 2: .*exactly one of"),
        ('{"messages": [{"role": "robot", "content": "b"}]}', "line 2: 'messages.0.role'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", '{"prompt": "ok"}', line))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no prompts"):
        read_prompts(write(tmp_path / "p.jsonl", "", " "))


def test_prompts_go_to_the_route_of_their_kind() -> None:
    assert Prompt(prompt="a").request() == ("/v1/completions", {"prompt": "a"})
    chat = Prompt.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    assert chat.request() == ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})


def test_overlap_by_text_and_by_source_file_is_refused() -> None:
    training = [Prompt(prompt="a", source="x.py"), Prompt(prompt="b")]
    refuse_overlap(training, [Prompt(prompt="c", source="y.py"), Prompt(prompt="d")])
    with pytest.raises(InputError, match="also a training prompt"):
        refuse_overlap(training, [Prompt(prompt="b", kind="other")])
    with pytest.raises(InputError, match=r"x\.py share their source"):
        refuse_overlap(training, [Prompt(prompt="c", source="x.py")])


def test_a_sample_is_seeded_and_by_kind() -> None:
    prompts = [Prompt(prompt=f"{kind}{i}", kind=kind) for kind in ("code", "chat") for i in range(20)]
    chosen = sample(prompts, 3, seed=1)
    assert [p.kind for p in chosen] == ["code"] * 3 + ["chat"] * 3
    assert chosen == sample(prompts, 3, seed=1)
    assert chosen != sample(prompts, 3, seed=2)
    assert sample(prompts, None, seed=1) == prompts


def test_a_sample_holds_as_many_as_asked_for_where_texts_repeat() -> None:
    prompts = [Prompt(prompt="hi")] * 50 + [Prompt(prompt="other")]
    assert len(sample(prompts, 8, seed=0)) == 8


def test_a_drawn_part_is_seeded_and_spread_over_the_file() -> None:
    prompts = [Prompt(prompt=str(i)) for i in range(100)]
    drawn = [int(prompt.prompt or "") for prompt in draw(prompts, 20, seed=1)]
    assert drawn == sorted(drawn)
    assert max(drawn) > 60
    assert drawn == [int(prompt.prompt or "") for prompt in draw(prompts, 20, seed=1)]
    assert draw(prompts, None, seed=1) == draw(prompts, 100, seed=1) == prompts


def test_text_and_chat_of_the_same_words_are_different_prompts_of_equal_text() -> None:
    text, chat = Prompt(prompt="hi"), Prompt.model_validate({"messages": [{"role": "user", "content": "hi"}]})
    assert text.id != chat.id
    assert prompts_hash([text]) != prompts_hash([text.model_copy(update={"kind": "other"})])
    with pytest.raises(InputError, match="also a training prompt"):
        refuse_overlap([text], [chat])


def test_line_separators_inside_a_string_do_not_end_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\u2028b\u0085c"}\n\n{"prompt": "d"}\n', encoding="utf-8")
    assert [prompt.prompt for prompt in read_prompts(file)] == ["a\u2028b\u0085c", "d"]


def test_the_shipped_prompts_are_enough_and_do_not_overlap() -> None:
    folder = Path(__file__).parents[3] / "reference" / "prompts"
    train, validation, heldout = (read_prompts(folder / f"{name}.jsonl") for name in ("train", "validation", "heldout"))
    assert sum(p.kind == "code" for p in heldout) >= 200
    assert sum(p.kind == "chat" for p in heldout) >= 100
    refuse_overlap(train, heldout)
    refuse_overlap(train, validation)
    refuse_overlap(validation, heldout)
    assert all(json.dumps(p.text).isascii() for p in heldout)
