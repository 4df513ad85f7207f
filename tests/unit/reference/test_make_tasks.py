import json

import pytest

from reference.corpus import SourceFile
from reference.make_tasks import FOLDER, NUM_CHOICES, TRAINED_ON, docstrings, drawn, extract, heldout_files, make
from stages.hashing import text_hash

TASKS = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def functions(word: str, count: int) -> str:
    return "".join(
        f'def {word}_{i}(first, second):\n    """Return {word} number {i} of the first and second value."""\n'
        f"    total_{word} = first * {i} + second\n    return total_{word} % {i + 3}\n\n"
        for i in range(count)
    )


def source(name: str, split: str, text: str) -> SourceFile:
    return SourceFile(name, split, text_hash(text), text)


TRAIN = source("stdlib/a.py", "train", functions("seen", 6))
HELDOUT = source("stdlib/b.py", "heldout", functions("seen", 6) + functions("fresh", 9))
COPY = source("stdlib/c.py", "heldout", TRAIN.text)


@pytest.mark.parametrize("task", TASKS)
def test_no_item_is_of_a_file_that_the_target_was_trained_on(task: str) -> None:
    """By hash of the file's text, as the card of the target lists them."""
    files = json.loads(TRAINED_ON.read_text())
    trained = {file["sha256"] for file in files.values() if file["split"] == "train"}
    items = [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]
    assert items
    assert not trained & {item["sha256"] for item in items}
    assert {files[item["source"]]["split"] for item in items} == {"heldout"}


@pytest.mark.parametrize("task", ["chat", "docstring", "signature"])
def test_the_right_answer_is_one_of_four_at_any_place(task: str) -> None:
    items = [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]
    assert all(len(set(item["choices"])) == NUM_CHOICES for item in items)
    places = [item["answer"] for item in items]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(NUM_CHOICES))


def test_all_data_together_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_500_000


def test_copies_of_training_text_are_left_out() -> None:
    files = [TRAIN, HELDOUT, COPY]
    assert heldout_files(files, {}) == [HELDOUT]
    assert heldout_files(files, {"x": {"split": "train", "sha256": HELDOUT.sha256}}) == []
    made = make(files, {}, 100)
    assert made["docstring"]
    assert all("fresh" in item["choices"][item["answer"]] for item in made["docstring"])
    assert all("seen" not in item["line"] for item in made["next_line"])


def test_the_same_files_make_the_same_items() -> None:
    assert make([TRAIN, HELDOUT], {}, 5) == make([TRAIN, HELDOUT], {}, 5)


def test_an_extract_is_whole_lines_of_its_file() -> None:
    found = extract(source("stdlib/d.py", "heldout", functions("word", 200)))["text"]
    assert set(found.splitlines()) <= set(functions("word", 200).splitlines())
    assert 1000 < len(found) <= 1600


def test_every_file_has_its_turn() -> None:
    made = make([TRAIN, HELDOUT], {}, 3)
    assert len(made["chat"]) == 3
    pairs = [p for file in (HELDOUT, TRAIN) for p in docstrings(file, set())]
    assert {pair.file.name for pair in drawn(pairs, 2, "s")} == {"stdlib/a.py", "stdlib/b.py"}
