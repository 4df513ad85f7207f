"""The live page in Chromium, which a fresh machine lacks: installed here, so that its unit test is not only skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.usefixtures("chromium")
def test_the_live_page_is_tried_in_a_browser() -> None:
    command = [sys.executable, "-m", "pytest", "tests/unit/server/test_page.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout
