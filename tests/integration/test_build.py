"""A whole build and a comparison through the real engine, on a small recipe for the reference target."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drafts.methods import wants_suffix
from server.pair import read_pair

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "reference" / "prompts"

pytestmark = pytest.mark.engine


def small_recipe(folder: Path) -> Path:
    """The reference recipe with little of everything; only for the way, not for the figures."""
    file = folder / "recipe.yaml"
    file.write_text(
        f"""
name: small
target: {ROOT / "reference" / "target"}
prompts: {{train: {PROMPTS / "train.jsonl"}, validation: {PROMPTS / "validation.jsonl"}, heldout: {PROMPTS / "heldout.jsonl"}}}
out: {folder / "out"}
prune: {{keep: 1}}
distill: {{max_prompts: 24, max_tokens: 24, concurrency: 8}}
recover: {{tokens: 12000, batch_tokens: 2048, parallel_tokens: 3}}
measure: {{prompts_per_kind: 1, repeats: 1, max_tokens: 16, temperatures: [0.0], concurrencies: [1, 2], suffix: false}}
choose: {{min_gain: 0.0}}
"""
    )
    return file


def understudy(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "understudy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


def children_of(group: int) -> list[str]:
    """Command lines of the processes in a session, zombies left out."""
    listed = subprocess.run(["ps", "-eo", "sess=,stat=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [row[2] for row in rows if len(row) == 3 and int(row[0]) == group and not row[1].startswith("Z")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was interrupted once while the target answered, then run again."""
    folder = tmp_path_factory.mktemp("build")
    recipe = small_recipe(folder)
    log = (folder / "first.log").open("w")
    first = subprocess.Popen(
        [sys.executable, "-m", "understudy", "build", str(recipe)], cwd=ROOT, stderr=log, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )  # fmt: skip
    data = folder / "out" / ".data.partial" / "data.jsonl"
    deadline = time.monotonic() + 600
    while first.poll() is None and time.monotonic() < deadline:
        if data.exists() and len(data.read_text().splitlines()) >= 2:
            break
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    assert first.wait(60) == 130, (folder / "first.log").read_text()
    assert children_of(first.pid) == []
    answered = len(data.read_text().splitlines())
    assert answered >= 2
    second = understudy("build", str(recipe))
    assert second.returncode == 0, second.stderr
    assert f"{folder / 'out' / 'pruned'} is up to date" in second.stderr
    return folder


def test_an_interrupted_build_resumes_and_ends_with_a_pair_that_can_be_served(built: Path) -> None:
    pair = read_pair(built / "out" / "pair")
    assert pair.target == (ROOT / "reference" / "target").resolve()
    measured = json.loads((built / "out" / "measured" / "measurements.json").read_text())
    assert [(c["method"], c["num_speculative_tokens"]) for c in measured["costs"]][:7] == [
        ("plain", 0), ("verify", 6), ("draft", 2), ("draft", 6), ("parallel", 2), ("parallel", 6), ("parallel", 0)
    ]  # fmt: skip
    assert (built / "out" / "pair" / "choice.png").stat().st_size > 1000


def test_a_finished_build_does_nothing(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (built / "out").rglob("*")}
    again = understudy("build", str(built / "recipe.yaml"))
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("is up to date") == 5
    assert before == {path: path.stat().st_mtime_ns for path in (built / "out").rglob("*")}


def test_a_comparison_writes_every_row_and_a_picture(built: Path) -> None:
    out = built / "comparison.json"
    options = [
        "--set",
        "prompts_per_kind=1",
        "--set",
        "max_tokens=16",
        "--set",
        "repeats=1",
        "--set",
        "concurrencies=[2]",
        "--set",
        "waves=1",
    ]
    heldout = str(PROMPTS / "heldout.jsonl")
    done = understudy("compare", str(built / "out" / "pair"), heldout, "--out", str(out), *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    serving = json.loads((built / "out" / "pair" / "serving.json").read_text())
    methods = {"plain", "ngram", *(["suffix"] if wants_suffix(None) else [])}
    if serving["draft"]:
        in_one_pass = serving["speculative_config"].get("parallel_drafting", False)
        methods |= {"draft", "draft_sequential" if in_one_pass else "draft_parallel"}
    keys = {(r["method"], r["kind"], r["concurrency"], r["temperature"]) for r in record["rows"]}
    assert keys == {(m, k, c, t) for m in methods for k in ("code", "chat") for c in (2,) for t in (0.0, 1.0)}
    for row in record["rows"]:
        assert row["num_prompts"] == 2
        assert row["output_tokens_per_s"] > 0
        assert (row["identical_outputs"] is None) == (row["temperature"] != 0)
    assert out.with_suffix(".png").stat().st_size > 1000
    assert len(out.with_suffix(".csv").read_text().splitlines()) == 1 + len(record["rows"])
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert 'src="http' not in page


def test_training_prompts_are_refused_for_a_comparison(built: Path) -> None:
    train, pair, out = str(PROMPTS / "train.jsonl"), str(built / "out" / "pair"), str(built / "c.json")
    done = understudy("compare", pair, train, "--out", out)
    assert done.returncode == 2
    assert "is one that draft was trained on" in done.stderr or "prompts that draft was trained on" in done.stderr
    heldout = str(PROMPTS / "heldout.jsonl")
    done = understudy("compare", pair, heldout, "--out", out, "--training-prompts", heldout)
    assert done.returncode == 2
    assert "is also a training prompt" in done.stderr
