"""Peak memory of NutePrune, or of plain fine-tuning of the same model, in a process of its own: a peak never comes down.

``python -m benchmarks.three_memory nuteprune|finetune TARGET PROMPTS STEPS`` prints the bytes beyond what the interpreter with its
imports takes; on a GPU those of the accelerator.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch

from pruning import calibration, checkpoint
from pruning.nuteprune import text
from pruning.nuteprune.settings import NutePruneSettings
from pruning.nuteprune.stage import prune_masks


def finetune(target: Path, settings: NutePruneSettings) -> None:
    """Plain fine-tuning: all weights in float32, AdamW, cross-entropy on the next token."""
    samples = calibration.load_samples(settings.calibration, settings.sequence_length)
    windows = text.windows(samples, checkpoint.load_tokenizer(target), settings.sequence_length)
    model = checkpoint.load_model(target, settings.dtype, settings.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for step, batch in enumerate(text.epoch(windows, settings.batch_tokens, settings.seed, 0)):
        if step == settings.steps:
            break
        moved = batch.to(model.device)
        labels = moved.input_ids.masked_fill(moved.attention_mask == 0, -100)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
            loss = model(input_ids=moved.input_ids, attention_mask=moved.attention_mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def peak_bytes() -> int:
    """The most memory that this process has had."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(what: str, target: str, prompts: str, steps: str) -> None:
    """Prints the peak of one of both beyond what it began with."""
    settings = NutePruneSettings(calibration=(Path(prompts),), steps=max(2, int(steps)), mixed_precision="no")
    before = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        if what == "nuteprune":
            prune_masks(Path(target), Path(folder) / "out", settings)
        else:
            finetune(Path(target), settings)
    print(json.dumps({"bytes": peak_bytes() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
