from pathlib import Path

import pytest

from stages.errors import InputError
from stages.hashing import checkpoint_hash, tokenizer_hash


def make(folder: Path, weights: bytes = b"w") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_what_decides_outputs_decides_the_hash(tmp_path: Path) -> None:
    first, same, other = make(tmp_path / "a"), make(tmp_path / "b"), make(tmp_path / "c", b"v")
    (same / "README.md").write_text("a card changes nothing")
    assert checkpoint_hash(first) == checkpoint_hash(same)
    assert checkpoint_hash(first) != checkpoint_hash(other)
    assert tokenizer_hash(first) == tokenizer_hash(other)


@pytest.mark.parametrize(("missing", "named"), [("config.json", "config.json"), ("model.safetensors", "safetensors")])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, missing: str, named: str) -> None:
    folder = make(tmp_path / "a")
    (folder / missing).unlink()
    with pytest.raises(InputError, match=named):
        checkpoint_hash(folder)
