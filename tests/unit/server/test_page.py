"""The live page in a browser without a screen; skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import whole

pytestmark = pytest.mark.anyio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_S = 120


RECORD = {
    "num_spec_steps": 10,
    "num_draft_tokens": 30,
    "num_accepted_draft_tokens": 12,
    "acceptance_histogram": [4, 2, 2, 2],
}
USAGE = {"prompt_tokens": 4, "completion_tokens": 22}
ANSWER = json.dumps({"choices": [{}], "usage": USAGE, "metrics": {"speculative_decoding": RECORD}}).encode()


@pytest.fixture
def screenshot(tmp_path: Path) -> Path:
    return Path(os.environ.get("SCREENSHOT", tmp_path / "page.png")).absolute()


def is_png(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG")


async def browse(url: str, *options: str) -> str:
    """What the page has become after its script has run."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions",
        "--no-first-run", "--no-proxy-server", "--window-size=900,900", "--virtual-time-budget=3000", *options, url,
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), WAIT_S)
    finally:
        if process.returncode is None:
            process.kill()
    return out.decode()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: the live page is not tried in a browser")
async def test_the_page_shows_the_figures(gateway: Gateway, screenshot: Path, tmp_path: Path) -> None:
    """`SCREENSHOT=docs/live-page.png` keeps a picture of what was seen."""
    async with gateway(whole(ANSWER), expected_mean_acceptance_length=2.0, expected_speedup=1.5) as running:
        await running.post("/v1/completions", {"prompt": "x"})
        await running.settled()
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        dom = await browse(running.url, profile, "--dump-dom")
        await browse(running.url, profile, f"--screenshot={screenshot}")
    assert re.search(r'id="state"[^>]*>m: serving<', dom)
    assert "m/d" in dom
    assert "2.20 (expected 2.00)" in dom
    assert "expected 1.50, seen: 1.65 from acceptance" in dom
    assert [float(width) for width in re.findall(r"width: ([\d.]+)%", dom)] == [60, 40, 20]
    assert is_png(screenshot)
