"""Progress lines where there is no terminal."""

from __future__ import annotations

import pytest

from stages import progress as module
from stages.progress import progress


def test_time_left_is_told_once_the_rate_says_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LOG_EVERY_S", 0.0)
    with progress("reading", 1000, "lines") as advance:
        advance(1)
        advance(499, note="half")
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.startswith("reading: 1 of 1,000 lines")
    assert "left" not in first
    assert "500 of 1,000" in second
    assert second.endswith("0:00 left half")
    assert last.startswith("reading: 500 lines in 0:0")
