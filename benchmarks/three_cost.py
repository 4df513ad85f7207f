"""Costs of pruning: CFSP's scoring over a plain forward pass, and NutePrune's peak memory over plain fine-tuning's."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pruning import calibration, checkpoint, statistics
from pruning.prune_width import make_plan
from pruning.settings import WidthSettings
from stages.errors import EngineError


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.no_grad()
def _forward(model: Any, batches: Sequence[calibration.Batch]) -> None:
    """A plain pass over the same tokens, up to the last hidden states: scoring needs no logits either."""
    for batch in batches:
        model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


def scoring_over_forward(target: Path, settings: WidthSettings, repeats: int) -> list[float]:
    """For each repeat the time of scoring and deciding what stays over a plain pass, one after the other."""
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    found = calibration.take(samples, checkpoint.load_tokenizer(target), settings.calibration_tokens, settings)
    model = checkpoint.load_model(target, settings.dtype, settings.device)
    _forward(model, found.batches)

    def scored() -> None:
        measured = statistics.measure(model, found.batches, lambda *_, **__: None)
        make_plan(model, measured, settings, target_sha256="")

    ratios = []
    for _ in range(repeats):
        plain = _seconds(lambda: _forward(model, found.batches))
        ratios.append(_seconds(scored) / plain)
    return ratios


def peak_mib(kind: str, target: Path) -> float:
    """Memory beyond imports of one kind of ``benchmarks.nuteprune_memory``, in a process of its own: a peak never comes down."""
    command = [sys.executable, "-m", "benchmarks.nuteprune_memory", "--target", str(target), "--kind", kind]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EngineError(f"the process that measures the memory of {kind!r} ended with {done.returncode}: {last}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["above_imports_mib"])
