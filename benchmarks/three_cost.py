"""Costs of pruning: CFSP's scoring over a plain forward pass, and NutePrune's peak memory over a plain fine-tuning step's.

``python -m benchmarks.three_cost nuteprune|finetune TARGET PROMPTS STEPS`` prints the bytes that one of both takes beyond what the
interpreter with all its imports takes: a process of its own for each, since a peak never comes down.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pruning import calibration, checkpoint, statistics
from pruning.nuteprune import text
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.stage import prune_masks
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
    """For each repeat the time of scoring's pass over a plain one's, one after the other."""
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    found = calibration.take(samples, checkpoint.load_tokenizer(target), settings.calibration_tokens, settings)
    model = checkpoint.load_model(target, settings.dtype, settings.device)
    _forward(model, found.batches)
    ratios = []
    for _ in range(repeats):
        plain = _seconds(lambda: _forward(model, found.batches))
        ratios.append(_seconds(lambda: statistics.measure(model, found.batches, lambda *_, **__: None)) / plain)
    return ratios


def peak_ratio(target: Path, prompts: Path, steps: int) -> float:
    """NutePrune's peak memory over that of fine-tuning the same model on batches of the same size."""
    peaks = [_peak_of(what, target, prompts, steps) for what in ("nuteprune", "finetune")]
    return peaks[0] / peaks[1]


def _peak_of(what: str, target: Path, prompts: Path, steps: int) -> float:
    command = [sys.executable, "-m", "benchmarks.three_cost", what, str(target), str(prompts), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise EngineError(f"the process that measures the memory of {what} ended with {done.returncode}: {last}")
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _finetune(target: Path, settings: NutePruneSettings) -> None:
    """Plain fine-tuning: all weights in float32, AdamW, cross-entropy on the next token."""
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    windows = text.windows(samples, checkpoint.load_tokenizer(target), settings.sequence_length)
    model = checkpoint.load_model(target, settings.dtype, settings.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _, batch in zip(range(settings.steps), text.epoch(windows, settings.batch_tokens, settings.seed, 0), strict=False):
        moved = batch.to(model.device)
        labels = moved.input_ids.masked_fill(moved.attention_mask == 0, -100)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
            loss = model(input_ids=moved.input_ids, attention_mask=moved.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(what: str, target: str, prompts: str, steps: str) -> None:
    """Prints the peak of one of both beyond what it began with."""
    settings = NutePruneSettings(
        calibration=(Path(prompts),), steps=max(2, int(steps)), sequence_length=256, batch_tokens=2048
    )
    before = _peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        if what == "nuteprune":
            prune_masks(Path(target), Path(folder) / "out", settings)
        else:
            _finetune(Path(target), settings)
    print(json.dumps({"bytes": _peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
