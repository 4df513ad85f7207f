"""Peak memory of a NutePrune step against one plain fine-tuning step of the same model: `python -m benchmarks.nuteprune_memory`.

Each step runs in a fresh process, on the same model and batch, and prints the process's peak resident memory and how much of
it came on top of the imports. `plain` is one step of full fine-tuning (cross-entropy, AdamW); `nuteprune` one step of the
search with a snapshot as teacher; `second_model` the same step with a teacher that is a second model in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

KINDS = ("plain", "nuteprune", "second_model")


def peak_mib() -> float:
    """Most resident memory so far, MiB; not by ``ru_maxrss``, which begins with that of the process it was forked from."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def the_batch(target: Path, sequences: int, length: int) -> Any:
    """Random tokens [sequences, length], the same for every kind."""
    import torch

    from pruning.calibration import Batch
    from pruning.checkpoint import load_config

    size = (sequences, length)
    ids = torch.randint(0, load_config(target).vocab_size, size, generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids))


def plain(target: Path, batch: Any, precision: str) -> None:
    """Full fine-tuning: all weights learn, as transformers does it."""
    import torch

    from pruning.checkpoint import load_model

    model = load_model(target, "float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    for _ in range(2):  # the optimiser's state is there from the second on
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=batch.input_ids, labels=batch.input_ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def nuteprune(target: Path, batch: Any, precision: str, second: bool = False) -> None:
    """Steps of the search with a snapshot as teacher, and as many snapshots on the CPU as 25 % of sparsity leave."""
    from pruning.checkpoint import load_model
    from pruning.nuteprune import loss
    from pruning.nuteprune.masks import deterministic_all
    from pruning.nuteprune.resident import Resident
    from pruning.nuteprune.settings import NutePruneSettings
    from pruning.nuteprune.sparsity import units_of
    from pruning.nuteprune.training import Trainer

    settings = NutePruneSettings(mixed_precision=precision)  # type: ignore[arg-type]
    model = load_model(target, "float32")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, units_of(model.config), settings, Path(folder), {"settings": {}, "inputs": {}})
    for _ in range(25):
        trainer.state.take_snapshot(deterministic_all(trainer.state.log_alphas), 0.0)
    if second:
        other, taught = Resident(load_model(target, "float32"), trainer.resident.scale), loss.teach
        loss.teach = lambda _, side, batch, hidden=True: taught(other, side, batch, hidden)  # type: ignore[assignment]
    for _ in range(2):
        trainer.search_step(batch)


def measure(kind: str, target: Path, sequences: int, length: int, precision: str) -> dict[str, float]:
    """Runs one kind in this process; peak memory in MiB."""
    import transformers  # noqa: F401

    import pruning.nuteprune.training  # noqa: F401

    batch, before = the_batch(target, sequences, length), peak_mib()
    if kind == "plain":
        plain(target, batch, precision)
    else:
        nuteprune(target, batch, precision, second=kind == "second_model")
    return {"peak_mib": round(peak_mib(), 1), "above_imports_mib": round(peak_mib() - before, 1)}


def main() -> None:
    """Starts one process per kind, or is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", type=Path, default=Path("reference/target"))
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--kind", choices=KINDS)
    given = parser.parse_args()
    if given.kind:
        print(json.dumps(measure(given.kind, given.target, given.sequences, given.length, given.precision)))
        return
    shape = ["--sequences", str(given.sequences), "--length", str(given.length), "--precision", given.precision]
    found: dict[str, Any] = {"sequences": given.sequences, "length": given.length, "precision": given.precision}
    for kind in KINDS:
        command = [
            sys.executable,
            "-m",
            "benchmarks.nuteprune_memory",
            "--target",
            str(given.target),
            "--kind",
            kind,
            *shape,
        ]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[kind] = json.loads(printed.strip().splitlines()[-1])
    for kind in KINDS[1:]:
        for figure in ("peak_mib", "above_imports_mib"):
            found[f"{kind}/plain {figure}"] = round(found[kind][figure] / found["plain"][figure], 3)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
