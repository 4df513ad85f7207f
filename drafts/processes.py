"""Recovery in several processes side by side, as ``accelerate launch`` starts them: whose rows, whose GPUs, sums over all.

Every process goes through the same batches and takes its own rows of each; gradients are averaged with weights that make them
those of one process on the whole batch. So the number of processes decides how long training takes, not what comes of it.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from torch import Tensor

from drafts.examples import Batch
from stages.errors import InputError, UnderstudyError
from stages.folders import publish
from stages.settings import Settings


def world() -> PartialState:
    """This process's place among those that were started together; alone where 'accelerate launch' started none."""
    return PartialState(cpu=not torch.cuda.is_available())


def rows_of(num_rows: int, index: int, processes: int) -> range:
    """The rows of a batch that process ``index`` of ``processes`` takes; empty where there are fewer rows than processes."""
    return range(num_rows * index // processes, num_rows * (index + 1) // processes)


def gpus_of(index: int, processes: int, count: int) -> list[int]:
    """The GPUs of process ``index`` on its machine, the one it trains on first: every ``processes``-th of ``count``."""
    return list(range(index, count, processes))


def own_gpus() -> list[int] | None:
    """This process's GPUs; None where it is alone and may have all."""
    place = world()
    if place.num_processes == 1:
        return None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", place.num_processes))
    return gpus_of(place.local_process_index, local, torch.cuda.device_count())


def own_part(batch: Batch, accelerator: Accelerator) -> tuple[Batch, float]:
    """This process's rows of a batch, and 1; its first row and 0 where there are none for it, since gradients need a pass."""
    if accelerator.num_processes == 1:
        return batch, 1.0
    rows = rows_of(len(batch.ids_BT), accelerator.process_index, accelerator.num_processes)
    return (batch.of_rows(rows), 1.0) if rows else (batch.of_rows(range(1)), 0.0)


def share_of(weight: Tensor, accelerator: Accelerator) -> Tensor | float:
    """By what a process's weighted mean is multiplied, so that the *mean* over processes is that of all positions.

    Args:
        weight: sum of the weights of this process's positions, a scalar.
    """
    if accelerator.num_processes == 1:
        return 1.0
    total = accelerator.reduce(weight.detach().clone(), reduction="sum")
    return weight * accelerator.num_processes / total


def agreed(values: Sequence[float], accelerator: Accelerator) -> list[float]:
    """Means over all processes, the same in each: what they decide by must not differ."""
    if accelerator.num_processes == 1:
        return list(values)
    mean: Tensor = accelerator.reduce(
        torch.tensor(values, dtype=torch.float64, device=accelerator.device), reduction="mean"
    )
    return [float(value) for value in mean]


@contextmanager
def published(folder: Path, partial: Path, stage: str) -> Iterator[Path]:
    """``publish`` in the first process; the others get the same temporary folder, and say nothing of their progress."""
    if world().is_main_process:
        with publish(folder, keep_partial=True, stage=stage) as place:
            yield place
    else:
        with redirect_stderr(io.StringIO()):
            yield partial


def refuse_too_many(processes: int) -> None:
    """Raises InputError where there are GPUs, but fewer than processes, or where this is one of several processes already."""
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus:
        raise InputError(f"processes: {processes}, but there are {gpus} GPUs; give at most {gpus}")
    if processes > 1 and world().num_processes > 1:
        raise InputError("processes: 'accelerate launch' has started several already; leave --processes out")


ENDING_S = 60.0
"""How long processes get to end after a signal: torch's launcher gives its own 30 s."""


def launch(processes: int, verb: str, arguments: Sequence[Path], out: Path, settings: Settings) -> None:
    """Runs a verb of the command in several processes, by ``accelerate launch``; they end with this one.

    Raises:
        UnderstudyError: the processes ended with an error, which they printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / f"{verb}.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")), encoding="utf-8")
        command = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
            "--module", "understudy", verb, *map(str, arguments), "--out", str(out), "--config", str(config),
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as launcher:
            code = _end_of(launcher)
    if code:
        raise UnderstudyError(f"{verb}: ended with an error in its {processes} processes; see the output above")


def _end_of(launcher: subprocess.Popen[bytes]) -> int:
    """The launcher's exit code; a signal that ends this process before ends the launcher, and with it its processes, first.

    The launcher's processes are in sessions of their own: only it can end them, and it does so on SIGTERM.
    """
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _interrupt) if in_main else None
    try:
        return launcher.wait()
    except BaseException:
        launcher.terminate()
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(ENDING_S)
        launcher.kill()
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
