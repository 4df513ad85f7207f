from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.pair import read_pair, read_served
from stages.errors import InputError
from stages.hashing import checkpoint_hash, tokenizer_hash


def checkpoint(folder: Path, weights: bytes, vocab_size: int = 8, tokenizer: str = "{}") -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size}))
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text(tokenizer)
    return {"sha256": checkpoint_hash(folder), "tokenizer_sha256": tokenizer_hash(folder)}


@pytest.fixture
def serving(tmp_path: Path) -> dict[str, Any]:
    target, draft = checkpoint(tmp_path / "target", b"t"), checkpoint(tmp_path / "build" / "draft", b"d")
    (tmp_path / "build" / "draft" / "understudy.json").write_text(json.dumps({"target_sha256": target["sha256"]}))
    return {
        "schema_version": 1, "served_model_name": "reference", "target": {"path": "../../target", **target},
        "draft": {"path": "../draft", **draft}, "max_model_len": 512,
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 4}, "reason": "why",
        "expected": {"acceptance_rate": 0.5, "mean_acceptance_length": 2.6, "speedup": 1.7},
    }  # fmt: skip


Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    folder = tmp_path / "build" / "pair"
    folder.mkdir(parents=True)

    def write(value: Any) -> Path:
        (folder / "serving.json").write_text(value if isinstance(value, str) else json.dumps(value))
        return folder

    return write


def test_a_pair_that_belongs_together(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    folder = write(serving)
    pair = read_pair(folder)
    assert pair == read_pair(folder / "serving.json")
    assert pair.target == tmp_path / "target"
    assert pair.draft_name == "draft"
    assert pair.speculative_config == {**serving["speculative_config"], "model": str(tmp_path / "build" / "draft")}


def test_methods_without_a_draft_model_and_no_draft_at_all(serving: dict[str, Any], write: Write) -> None:
    ngram = {"method": "ngram", "num_speculative_tokens": 4}
    pair = read_pair(write({**serving, "draft": None, "speculative_config": ngram}))
    assert (pair.draft_name, pair.speculative_config) == ("ngram", ngram)
    pair = read_pair(write({**serving, "draft": None, "speculative_config": None}))
    assert (pair.draft_name, pair.speculative_config) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema_version": 2}, "schema_version"), ({"reson": "x"}, "did you mean 'reason'"),
     ({"max_model_len": 0}, "max_model_len"),
     ({"speculative_config": None}, "no speculative_config"), ({"draft": None}, "needs a draft"),
     ({"speculative_config": {"num_speculative_tokens": 3}}, "needs a 'method'"),
     ({"speculative_config": {"method": "draft_model", "num_speculative_tokens": 0}}, "at least 1, given 0")],
)  # fmt: skip
def test_files_that_say_something_impossible(
    serving: dict[str, Any], write: Write, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_pair(write({**serving, **change}))


@pytest.mark.parametrize(("text", "message"), [("{", "line 1"), ("[]", "must be a JSON object")])
def test_files_that_are_no_json_object(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pair(write(text))


def test_a_pair_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_pair(tmp_path)


def test_another_target_in_the_folder(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    checkpoint(tmp_path / "target", b"other")
    with pytest.raises(InputError, match=r"the target in .* its content hash"):
        read_pair(write(serving))


def test_another_draft_in_the_folder(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    checkpoint(tmp_path / "build" / "draft", b"other")
    with pytest.raises(InputError, match=r"the draft in .* its content hash"):
        read_pair(write(serving))


def test_a_folder_that_is_gone(serving: dict[str, Any], write: Write) -> None:
    serving["draft"]["path"] = "../nowhere"
    with pytest.raises(InputError, match=r"draft's folder .* does not exist"):
        read_pair(write(serving))


def test_different_tokenizers(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    serving["draft"].update(checkpoint(tmp_path / "build" / "draft", b"d", tokenizer='{"other": 1}'))
    with pytest.raises(InputError, match="different tokenizers"):
        read_pair(write(serving))


def test_different_vocabularies(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    serving["draft"].update(checkpoint(tmp_path / "build" / "draft", b"d", vocab_size=9))
    with pytest.raises(InputError, match="vocabulary has 8 tokens, the draft's 9"):
        read_pair(write(serving))


def test_a_draft_that_was_made_for_another_target(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    (tmp_path / "build" / "draft" / "understudy.json").write_text('{"target_sha256": "abc"}')
    with pytest.raises(InputError, match="made for another target"):
        read_pair(write(serving))


def test_a_checkpoint_alone_is_served_without_a_draft(serving: dict[str, Any], write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    checkpoint(folder, b"p")
    with pytest.raises(InputError, match="no max_position_embeddings; give --max-model-len"):
        read_served(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8, "max_position_embeddings": 64}))
    alone = read_served(folder)
    assert (alone.target, alone.draft, alone.speculative_config, alone.draft_name) == (folder, None, None, None)
    assert (alone.serving.served_model_name, alone.serving.max_model_len) == ("pruned", 64)
    assert read_served(folder, "mine", 32).serving.served_model_name == "mine"
    pair = write(serving)
    assert read_served(pair) == read_pair(pair)
    with pytest.raises(InputError, match=r"is a pair, .* leave --max-model-len out"):
        read_served(pair, max_model_len=32)
    with pytest.raises(InputError, match=r"serving\.json: no such file"):
        read_served(tmp_path)
