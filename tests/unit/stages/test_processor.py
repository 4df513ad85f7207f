"""Which type a processor is quick at is read from what the system says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.processor import multiplies_bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("model name\t: B\nflags\t\t: fpu avx2 avx512f\n\nflags\t\t: fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16 sve\n", True),
        ("Features\t: fp asimd\n", False),
        ("processor\t: 0\n", True),
    ],
)
def test_flags(tmp_path: Path, text: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text, encoding="utf-8")
    assert multiplies_bfloat16(file) == expected


def test_a_system_that_says_nothing(tmp_path: Path) -> None:
    assert multiplies_bfloat16(tmp_path / "none")
