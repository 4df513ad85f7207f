from pathlib import Path

import pytest

from . import pico


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A tied Llama of five layers on disk."""
    return pico.save(pico.LLAMA.model(), tmp_path / "target")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A plain text of about 2,000 tokens."""
    file = tmp_path / "text.txt"
    file.write_text("".join(f"def f{i}(x):\n    return x * {i} + {i % 7}\n" for i in range(60)))
    return file
