"""One served pair for all tests: the reference target, a draft of one of its layers, and the real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from server.engine import engines_at_hand
from stages.hashing import checkpoint_hash, tokenizer_hash

PROJECT = Path(__file__).resolve().parents[2]
TARGET = PROJECT / "reference" / "target"
START_S = 600.0
NUM_SPECULATIVE_TOKENS = 3
SPECULATION = {"method": "draft_model", "draft_sample_method": "probabilistic"}


def wait_for(what: str, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Waits until a condition holds; fails with its name otherwise."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.05)


def get(url: str) -> tuple[int, str]:
    """Status and body; 0 when nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def metric(url: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples that carry these labels."""
    total = 0.0
    for line in get(f"{url}/metrics")[1].splitlines():
        sample, _, value = line.rpartition(" ")
        if sample.partition("{")[0] == name and all(f'{key}="{wanted}"' in sample for key, wanted in labels.items()):
            total += float(value)
    return total


def descendants(root: int) -> set[int]:
    """All processes below one, however deep."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {root}


def alive(pids: set[int]) -> set[int]:
    """Those that still run (a zombie does not)."""
    running = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        running |= {pid} if state != "Z" else set()
    return running


def cut_one_layer(target: Path, draft: Path) -> None:
    """A draft of the target's first layer, untrained: it accepts little, which is all these tests need."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:1]
    model.save_pretrained(draft)
    for file in target.glob("*token*"):
        shutil.copy(file, draft)


def describe(folder: Path) -> dict[str, str]:
    """A checkpoint's entry in serving.json."""
    return {"path": str(folder), "sha256": checkpoint_hash(folder), "tokenizer_sha256": tokenizer_hash(folder)}


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines that tests start in this process share what they import: half of each start."""
    with engines_at_hand(tmp_path_factory.mktemp("engines") / "engines.log"):
        yield


@pytest.fixture(scope="session")
def pair_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pair with the reference target."""
    root = tmp_path_factory.mktemp("pair")
    target, draft = root / "target", root / "one-layer"
    shutil.copytree(TARGET, target)
    cut_one_layer(target, draft)
    serving = {
        "schema_version": 1, "served_model_name": "reference", "target": describe(target), "draft": describe(draft),
        "speculative_config": {**SPECULATION, "num_speculative_tokens": NUM_SPECULATIVE_TOKENS},
        "max_model_len": 512, "reason": "for tests",
    }  # fmt: skip
    (root / "serving.json").write_text(json.dumps(serving))
    return root


@dataclass
class Served:
    """A running `serve`."""

    process: subprocess.Popen[bytes]
    url: str
    engine_url: str
    output: Path
    engine_log: Path
    early: dict[str, tuple[int, str]]
    """Status and body of some routes while the engine was starting."""

    @property
    def client(self) -> openai.OpenAI:
        """The real client, with a key that must not get through."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="client-key", max_retries=0, timeout=120)

    def settle(self) -> None:
        """Waits until neither gateway nor engine has a request under way."""
        wait_for("no request under way", lambda: metric(self.url, "understudy_requests_in_flight") == 0)
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting"):
            wait_for(f"{name} is 0", lambda name=name: metric(self.engine_url, name) == 0)


def start_serving(pair: Path, folder: Path, port: int = 0) -> subprocess.Popen[bytes]:
    """Starts `serve` as a process; its output goes to ``folder``/output."""
    script = Path(__file__).with_name("serve_pair.py")
    arguments = [sys.executable, *map(str, (script, pair, folder / "engine.log", port))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)


def said(output: Path, pattern: str) -> str | None:
    """What a running `serve` has said, by a pattern with one group."""
    found = re.search(pattern, output.read_text())
    return found.group(1) if found else None


def end(process: subprocess.Popen[bytes]) -> None:
    """Ends a `serve` whatever a test has done to it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def served(pair_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The served pair, ready; with what it answered while its engine was starting."""
    folder = tmp_path_factory.mktemp("serve")
    process, output = start_serving(pair_folder, folder), folder / "output"
    try:
        wait_for("an address", lambda: said(output, r"gateway: (\S+)") or process.poll() is not None, START_S)
        gateway, engine = said(output, r"gateway: (\S+)"), said(output, r"engine: (http\S+),")
        assert gateway, output.read_text()
        assert engine, output.read_text()
        wait_for("the gateway", lambda: get(f"{gateway}/health")[0] == 200)
        early = {path: get(gateway + path) for path in ("/health", "/ready", "/v1/models")}
        wait_for("ready", lambda: get(f"{gateway}/ready")[0] == 200 or process.poll() is not None, START_S)
        assert process.poll() is None, output.read_text()
        yield Served(process, gateway, engine, output, folder / "engine.log", early)
    finally:
        end(process)
