"""What a draft says it was trained on: no measuring on it, whichever of prompt and source file gives it away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drafts.prompts import Message, Prompt
from drafts.trained_on import (
    FILE,
    TrainedOn,
    identified,
    read_trained_on,
    refuse_known,
    refuse_seen,
    trained_on,
    write_trained_on,
)
from stages.errors import InputError

SEEN = Prompt(prompt="def read(path):", kind="code", source="json/decoder.py")
SAME_FILE = Prompt(prompt="def write(path):", kind="code", source="json/decoder.py")
NEW = Prompt(prompt="class Heap:", kind="code", source="heapq.py")


def record(prompt: Prompt) -> dict[str, Any]:
    return {"id": prompt.id, "kind": prompt.kind, "source": prompt.source, "prompt": prompt.prompt, "answer": "…"}


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    write_trained_on(tmp_path, trained_on([record(SEEN)]))
    return tmp_path


def test_a_seen_prompt_and_one_of_its_file_are_refused_and_others_are_not(draft: Path) -> None:
    found = read_trained_on(draft)
    assert found is not None
    found.refuse(identified([NEW]), "draft")
    with pytest.raises(InputError, match=f"{SEEN.id}.*that draft was trained on"):
        found.refuse(identified([NEW, SEEN]), "draft")
    with pytest.raises(InputError, match=r"json/decoder.py share their source file with .* sibling was trained on"):
        found.refuse(identified([SAME_FILE]), "sibling")


def test_a_seen_text_is_refused_by_the_other_route_too(draft: Path, tmp_path: Path) -> None:
    as_chat = Prompt(messages=(Message(role="user", content="def read(path):"),))
    with pytest.raises(InputError, match=r"is one that .* was trained on"):
        refuse_known(identified([NEW, as_chat]), draft)
    write_trained_on(tmp_path, trained_on([{"id": as_chat.id}]))
    with pytest.raises(InputError, match=r"is one that .* was trained on"):
        refuse_known(identified([SEEN]), tmp_path)


def test_the_list_tells_nobody_what_the_prompts_were(draft: Path) -> None:
    text = (draft / FILE).read_text(encoding="utf-8")
    assert "read" not in text
    assert "decoder" not in text
    assert json.loads(text)["prompts"] == [SEEN.id]


def test_prompts_without_a_source_are_told_apart_by_what_they_ask() -> None:
    found = trained_on([record(Prompt(prompt="a"))])
    assert found.sources == frozenset()
    found.refuse(identified([Prompt(prompt="b")]), "draft")


def test_two_lists_are_one() -> None:
    both = trained_on([record(SEEN)]) | trained_on([record(NEW)])
    assert both == trained_on([record(NEW), record(SEEN)])
    assert both | TrainedOn() == both


@pytest.mark.parametrize("content", ["[1]", '{"prompts": []}', '{"prompts": 3, "sources": []}', "{"])
def test_a_list_that_cannot_be_read_is_refused(draft: Path, content: str) -> None:
    (draft / FILE).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=FILE):
        read_trained_on(draft)


def test_each_draft_is_checked_by_its_own_list_and_those_without_one_are_named(
    draft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    drafts = {"draft": draft, "sibling": bare}
    assert refuse_seen([NEW], None, drafts) == {
        "training_prompts": None,
        "trained_on": {"draft": True, "sibling": False},
    }
    assert "not checked for sibling:" in capsys.readouterr().err
    with pytest.raises(InputError, match="draft was trained on"):
        refuse_seen([SEEN], None, drafts)
    training = tmp_path / "training.jsonl"
    training.write_text(SAME_FILE.model_dump_json(exclude_none=True) + "\n", encoding="utf-8")
    assert refuse_seen([NEW], training, drafts)["training_prompts"]
    assert capsys.readouterr().err == ""
    with pytest.raises(InputError, match="is also a training prompt"):
        refuse_seen([SAME_FILE], training, {"sibling": bare})
