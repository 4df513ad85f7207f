import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from server.engine_alone import become
from server.engine_command import command, environment
from server.pair import engine_settings, read_pair
from stages.errors import EngineError, InputError
from stages.hashing import checkpoint_hash, tokenizer_hash


def checkpoint(folder: Path, weights: bytes) -> dict[str, str]:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8, "max_position_embeddings": 64}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return {"sha256": checkpoint_hash(folder), "tokenizer_sha256": tokenizer_hash(folder)}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A pair whose target has been carried somewhere else than where serving.json says."""
    target = checkpoint(tmp_path / "elsewhere" / "target", b"target")
    draft = checkpoint(tmp_path / "draft", b"draft")
    serving = {
        "schema_version": 1, "served_model_name": "m", "max_model_len": 64, "engine_args": ["--seed", "1"],
        "target": {**target, "path": "../../gone"}, "draft": {**draft, "path": "../draft"},
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 2},
    }  # fmt: skip
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "serving.json").write_text(json.dumps(serving))
    return tmp_path / "pair"


class Seen:
    """What would have been run."""

    def __call__(self, program: str, line: Sequence[str], variables: Mapping[str, str]) -> None:
        self.line, self.variables = list(line), dict(variables)
        assert program == line[0]


def test_it_becomes_what_serve_would_start(pair: Path) -> None:
    seen, target = Seen(), pair.parent / "elsewhere" / "target"
    become(pair, target, "0.0.0.0", 8001, {"cpu": True}, ["--max-num-seqs", "4"], seen)
    served = engine_settings(read_pair(pair, target), Path("log"), cpu=True)
    expected = [*command(served, 8001), "--max-num-seqs", "4"]
    expected[expected.index("127.0.0.1")] = "0.0.0.0"
    assert seen.line == expected
    assert seen.variables.items() >= environment(served, {}).items()
    assert seen.line[0] == sys.executable


def test_the_target_must_be_the_one_the_pair_was_made_with(pair: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        become(pair, None, "127.0.0.1", 1, {}, [], Seen())
    other = pair.parent / "other"
    checkpoint(other, b"other")
    with pytest.raises(InputError, match="not the one this pair was made with"):
        become(pair, other, "127.0.0.1", 1, {}, [], Seen())


def test_a_checkpoint_alone_needs_no_target(pair: Path) -> None:
    seen, target = Seen(), pair.parent / "elsewhere" / "target"
    become(target, None, "127.0.0.1", 1, {}, [], seen)
    assert "--speculative-config" not in seen.line
    with pytest.raises(InputError, match="needs no --target"):
        become(target, target, "127.0.0.1", 1, {}, [], seen)


def test_settings_are_checked_by_name_and_value(pair: Path) -> None:
    target = pair.parent / "elsewhere" / "target"
    with pytest.raises(InputError, match="did you mean 'max_num_seqs'"):
        become(pair, target, "127.0.0.1", 1, {"max_num_seq": 4}, [], Seen())
    with pytest.raises(InputError, match="max_num_seqs"):
        become(pair, target, "127.0.0.1", 1, {"max_num_seqs": 0}, [], Seen())


def test_an_interpreter_that_is_not_there_is_told_of_in_one_line(pair: Path) -> None:
    target = pair.parent / "elsewhere" / "target"
    with pytest.raises(EngineError, match=r"nowhere/python: cannot be run \(No such file"):
        become(pair, target, "127.0.0.1", 1, {"python": "/nowhere/python"}, [])
