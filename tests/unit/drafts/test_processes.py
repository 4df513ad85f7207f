"""Recovery in several processes: who takes what, and that it comes to the same as in one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drafts import training
from drafts.distilling import DistillSettings, distill
from drafts.examples import Example, collate
from drafts.parallel import with_masks
from drafts.processes import gpus_of, launch, rows_of
from drafts.recovery import recover
from drafts.training import RecoverSettings
from pruning.checkpoint import load_model
from pruning.prune import PruneSettings, prune
from stages import provenance
from stages.errors import UnderstudyError
from tests.unit.pruning import pico

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("rows", "processes"), [(7, 3), (2, 3), (8, 4), (1, 1)])
def test_every_row_is_taken_once(rows: int, processes: int) -> None:
    parts = [rows_of(rows, index, processes) for index in range(processes)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_every_gpu_is_taken_once_and_a_process_begins_with_the_one_accelerate_gives_it() -> None:
    parts = [gpus_of(index, 2, 5) for index in range(2)]
    assert parts == [[0, 2, 4], [1, 3]]
    assert [part[0] for part in parts] == [0, 1]


def test_rows_of_a_batch_are_judged_as_in_the_whole() -> None:
    examples = [Example(tuple(range(1, 5 + n)), 2) for n in range(4)]
    whole = with_masks(collate(examples, [2, 0, 3, 1], 0.5), 3, 0.8, 99, random.Random(0))
    parts = [whole.of_rows(rows_of(4, index, 2)) for index in range(2)]
    assert [index for part in parts for index in part.indices] == [2, 0, 3, 1]
    assert sum(part.num_tokens for part in parts) == whole.num_tokens
    for part, first in zip(parts, (0, 2), strict=True):
        mine = (whole.rows_N >= first) & (whole.rows_N < first + 2)
        assert torch.equal(part.labels_N, whole.labels_N[mine])
        assert torch.equal(part.weights_N, whole.weights_N[mine])
        assert torch.equal(part.visible_B1XX, whole.visible_B1XX[first : first + 2])
        inputs = part.inputs_BX[part.rows_N, part.places_P]
        assert torch.equal(inputs, whole.inputs_BX[whole.rows_N, whole.places_P][mine])
        chained = part.before_P >= 0
        assert torch.equal(part.depths_P[part.before_P[chained]], part.depths_P[chained] - 1)
        assert torch.equal(part.rows_N[part.before_P[chained]], part.rows_N[chained])


def interrupted(step: Callable[..., float], after: int) -> Callable[..., float]:
    """A step that is interrupted, and taken all the same, when it has been taken ``after`` times."""
    left = iter(range(after))

    def take(self: training.Trainer, *given: Any) -> float:
        if next(left, None) is None:
            signal.raise_signal(signal.SIGINT)
        return step(self, *given)

    return take


def test_two_processes_train_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With masks and a share of every loss; batches of three to five rows, some of which fall to one process alone."""
    target = pico.save(pico.LLAMA.model(), tmp_path / "target")
    lines = [{"kind": "code", "prompt": f"def f{i}(" + "a, " * (i % 5)} for i in range(24)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    prune(target, tmp_path / "pruned", PruneSettings(keep=2))
    distill(target, prompts, tmp_path / "data", DistillSettings(backend="transformers", max_tokens=12, concurrency=8))
    settings = RecoverSettings(
        tokens=1500, batch_tokens=128, check_share=0.2, mixed_precision="no", checkpoint_every_s=0.05, optimizer="adamw",
        parallel_tokens=3, overlap_weight=0.2, reverse_kl_weight=0.2, ce_weight=0.2,
    )  # fmt: skip
    inputs, made = (target, tmp_path / "pruned", tmp_path / "data"), {}
    monkeypatch.setattr(training.Trainer, "step", interrupted(training.Trainer.step, 3))
    with pytest.raises(KeyboardInterrupt):
        recover(*inputs, tmp_path / "2", settings)  # one process begins what two end
    monkeypatch.undo()
    for processes in (1, 2):
        out = tmp_path / str(processes)
        recover(*inputs, out, settings, processes)
        made[processes] = provenance.read(out) or {}
        assert made[processes]["processes"] == processes
        assert not (out / "training").exists()
    assert "recovery resumes at" in capfd.readouterr().err
    assert made[1]["position"]["tokens"] == made[2]["position"]["tokens"]
    one, two, before = (load_model(tmp_path / name) for name in ("1", "2", "pruned"))
    moved = [(a - c).norm() for a, c in zip(one.parameters(), before.parameters(), strict=True)]
    apart = [(a - b).norm() for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert sum(moved) > 100 * sum(apart)
    assert made[1]["figures"]["overlap"] == pytest.approx(made[2]["figures"]["overlap"], abs=1e-3)


SLEEPS = """
import signal
from pathlib import Path

from drafts import processes
from drafts.training import RecoverSettings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is started without
run = processes.subprocess.Popen
sleep = "import os, time; open('worker-' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(100)"
processes.subprocess.Popen = lambda command, **more: run(
    [*command[: command.index("--module")], "--module", "asleep"], **more
)
Path("asleep.py").write_text(sleep)
processes.launch(2, "recover", (), Path("out"), RecoverSettings())
"""


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, with_signal: signal.Signals) -> None:
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    command = [sys.executable, "-c", SLEEPS]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}) as child:
        workers = [tmp_path / f"worker-{rank}" for rank in range(2)]
        deadline = time.monotonic() + 60
        while not all(file.is_file() and file.read_text() for file in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
        ids = [int(file.read_text()) for file in workers]
        child.send_signal(with_signal)
        assert child.wait(60) != 0
    for pid in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_error_in_the_processes_is_one_line_of_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UnderstudyError, match="recover: ended with an error in its 2 processes"):
        launch(2, "recover", (missing, missing, missing), tmp_path / "out", RecoverSettings())
    assert "understudy: " in capfd.readouterr().err
