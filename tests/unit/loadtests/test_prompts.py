from pathlib import Path

import pytest

from loadtests.prompts import parse_prompt, read_prompts
from stages.errors import InputError


def test_route_and_kind_follow_from_the_line() -> None:
    chat = parse_prompt('{"messages": [{"role": "user", "content": "abc"}]}', "x")
    text = parse_prompt('{"prompt": "abcd", "kind": "code", "source": "a.py"}', "x")
    assert (chat.kind, chat.route, chat.chars) == ("chat", "chat", 3)
    assert (text.kind, text.route, text.chars, text.content) == ("code", "completions", 4, {"prompt": "abcd"})


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"prompt": ""}', '{"prompt": "a", "messages": []}', '{"messages": [{}]}']
)
def test_a_line_that_is_no_prompt_is_refused_with_its_place(line: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(InputError, match="line 2"):
        read_prompts(file)
