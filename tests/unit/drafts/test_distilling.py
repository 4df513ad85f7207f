"""Data modes on pico models: who answers what, and that a resumed run asks the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from drafts.distilling import DATA, Asked, DistillSettings, distill, mode_of, read_data, record_of, to_ask
from drafts.prompts import Prompt, read_prompts
from stages.errors import InputError
from tests.unit.pruning import pico

LINES: list[dict[str, Any]] = [
    *({"kind": "code", "prompt": f"def f{i}(", "reference": f"x): return {i}"} for i in range(20)),
    *(
        {"kind": "chat", "messages": [{"role": "user", "content": f"what is {i}?"}], "reference": f"It is {i}."}
        for i in range(20)
    ),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.save(pico.LLAMA.model(), tmp_path_factory.mktemp("target"))


def prompts(folder: Path, lines: list[dict[str, Any]]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def made(target: Path, folder: Path, lines: list[dict[str, Any]] = LINES, **mixture: float) -> list[dict[str, Any]]:
    settings = DistillSettings.model_validate(
        {"backend": "transformers", "max_tokens": 4, "concurrency": 16, "max_model_len": 128, "mixture": mixture}
    )
    distill(target, prompts(folder, lines), folder / "data", settings)
    return read_data(folder / "data" / DATA)


def test_references_are_taken_as_they_are(target: Path, tmp_path: Path) -> None:
    records = made(target, tmp_path, reference=1.0)
    assert len(records) == len(LINES)
    by_text = {record.get("prompt") or record["messages"][0]["content"]: record for record in records}
    assert by_text["def f3("]["answer"] == "x): return 3"
    assert by_text["def f3("]["finish_reason"] == "length"
    assert by_text["what is 3?"]["finish_reason"] == "stop"
    assert {record["mode"] for record in records} == {"reference"}


def test_a_mixture_splits_by_prompt_and_every_prompt_is_answered_once(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = made(target, tmp_path, direct=1.0, rewrite=1.0, reference=1.0)
    assert sorted(record["place"] for record in records) == list(range(len(LINES)))
    found = read_prompts(tmp_path / "prompts.jsonl")
    mixture: Any = {"direct": 1.0, "rewrite": 1.0, "reference": 1.0}
    for record in records:
        assert record["mode"] == mode_of(found[record["place"]], mixture)
    assert {record["mode"] for record in records} == {"direct", "rewrite", "reference"}
    for record in records:
        if record["mode"] == "rewrite":
            assert record["kind"] == "chat"
            assert (record["answer"] == found[record["place"]].reference) == (record["selected"] != "rewrite")
    asked = [record["selected"] == "rewrite" for record in records if record["mode"] == "rewrite"]
    references = sum(record["mode"] == "reference" for record in records)
    said = f"{sum(asked)} rewrites, {len(asked) - sum(asked)} that gave way to their reference"
    shown = capsys.readouterr().err
    assert said in shown
    assert f"{references} references (of text to be continued, or by the mixture)" in shown


def test_direct_needs_no_reference_and_the_others_name_the_prompt_that_lacks_one(target: Path, tmp_path: Path) -> None:
    plain = [{"kind": "code", "prompt": "def f("}]
    assert made(target, tmp_path, plain, direct=1.0)[0]["mode"] == "direct"
    with pytest.raises(InputError, match=f"prompt {Prompt(prompt='def f(').id} .* has none"):
        made(target, tmp_path, plain, reference=1.0)


def test_a_refused_rewrite_gives_way_to_the_reference_and_says_why() -> None:
    prompt = Prompt.model_validate(LINES[-1])
    asked = Asked(0, prompt, 0.0, 0, "rewrite")
    assert "It is 19." in asked.shown.text
    assert record_of(asked, "It's nineteen.", "length", "hash")["answer"] == "It's nineteen."
    refused = record_of(asked, "The reference answer is 19.", "length", "hash")
    assert (refused["answer"], refused["selected"], refused["finish_reason"]) == (
        "It is 19.", "it mentions the reference answer", "stop"
    )  # fmt: skip
    assert refused["messages"] == [{"role": "user", "content": "what is 19?"}]


def test_a_resumed_run_asks_only_what_is_missing() -> None:
    found = [Prompt.model_validate(line) for line in LINES]
    settings = DistillSettings(mixture={"direct": 1.0, "reference": 1.0})
    every = [asked for group in to_ask(found, settings, set()) for asked in group]
    left = [asked for group in to_ask(found, settings, {every[0].place}) for asked in group]
    assert 0 < len(every) < len(LINES)
    assert left == every[1:]


def test_every_kind_is_asked_at_every_temperature_even_where_kinds_alternate() -> None:
    found = [Prompt(prompt=str(i), kind=("code", "chat")[i % 2]) for i in range(8)]
    asked = [one for group in to_ask(found, DistillSettings(temperatures=(0.0, 1.0)), set()) for one in group]
    counts = Counter((one.prompt.kind, one.temperature) for one in asked)
    assert counts == {(kind, t): 2 for kind in ("code", "chat") for t in (0.0, 1.0)}


def test_only_the_wanted_kinds_are_asked(target: Path, tmp_path: Path) -> None:
    settings = DistillSettings(backend="transformers", max_tokens=4, max_model_len=128, kinds=("chat",))
    distill(target, prompts(tmp_path, LINES), tmp_path / "data", settings)
    assert {record["kind"] for record in read_data(tmp_path / "data" / DATA)} == {"chat"}
    with pytest.raises(InputError, match="no prompt of kind 'prose'; its kinds are chat, code"):
        distill(
            target, tmp_path / "prompts.jsonl", tmp_path / "none", settings.model_copy(update={"kinds": ("prose",)})
        )


def test_a_reference_that_leaves_no_room_is_taken_as_it_is(
    target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pico tokenizer has a token for about every byte: guidance and reference together are longer than the model's 128."""
    long = {"kind": "chat", "messages": [{"role": "user", "content": "what is it?"}], "reference": "It is long. " * 60}
    (record,) = made(target, tmp_path, [long], rewrite=1.0)
    assert (record["mode"], record["selected"], record["answer"]) == ("reference", "reference", long["reference"])
    assert "1 prompts leave no room for their reference" in capsys.readouterr().err
