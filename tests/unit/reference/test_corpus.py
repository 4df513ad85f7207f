from pathlib import Path

import pytest

from reference.chat_pairs import chat_pairs
from reference.corpus import SourceFile, check_disjoint, collect, is_table, split_of
from reference.make_prompts import code_prompts, make, text_of

SOURCE = '''
def area(width, height):
    """Return the area of a rectangle in square metres."""
    if width < 0:
        raise ValueError("width")
    if height < 0:
        raise ValueError("height")
    return width * height
'''


def source(name: str = "stdlib/shapes.py", split: str = "train", text: str = SOURCE) -> SourceFile:
    return SourceFile(name, split, "0", text)


def test_a_file_always_splits_the_same_way_and_dependencies_only_train() -> None:
    names = [f"stdlib/m{i}.py" for i in range(400)]
    splits = [split_of(name) for name in names]
    assert splits == [split_of(name) for name in names]
    assert 0.02 < splits.count("validation") / 400 < 0.1
    assert 0.05 < splits.count("heldout") / 400 < 0.16
    assert {split_of(name.replace("stdlib", "rich")) for name in names} == {"train"}


def test_one_text_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="same text"):
        check_disjoint([source(split="train"), source("stdlib/b.py", "heldout")])


def test_tables_are_told_from_code() -> None:
    assert is_table("".join(f"    0x{i:04x}: 0x{i + 3:04x},\n" for i in range(100)))
    assert not is_table(Path(__file__).read_text() * 2)


def test_tests_and_tables_are_left_out_of_the_corpus(tmp_path: Path) -> None:
    for name in ("test/test_a.py", "encodings/cp1.py", "json/decoder.py", "idlelib/idle_test/t.py"):
        file = tmp_path / "stdlib" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}\n" + SOURCE * 3)
    found = collect(stdlib=tmp_path / "stdlib", site_packages=tmp_path / "none")
    assert [file.name for file in found] == ["stdlib/json/decoder.py"]


def test_chat_pairs_come_from_signature_docstring_and_body() -> None:
    pairs = chat_pairs([source()], pairs_per_function=5)
    assert len(pairs) == 5
    answers = {pair["answer"] for pair in pairs}
    assert "Return the area of a rectangle in square metres." in answers
    assert any("def area(width, height):" in answer and '"""' not in answer for answer in answers)


def test_code_prompts_end_where_the_model_shall_go_on() -> None:
    (record,) = code_prompts(source())
    assert SOURCE.startswith(record["prompt"])
    assert record["prompt"] == record["prompt"].rstrip()


def test_a_prompt_is_used_by_one_split_only() -> None:
    used: set[str] = set()
    files = [source("stdlib/a.py", "heldout"), source("stdlib/b.py", "train")]
    held = make(files, "heldout", 5, 5, used)
    assert held
    taken = [text_of(record) for record in held]
    assert [r for r in make(files, "train", 5, 5, used) if text_of(r) in taken] == []
