"""What this machine's processor is good at, as far as it decides how models are computed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Flags of instructions that multiply bfloat16 numbers: of x86 processors, and of ARM's."""


@cache
def multiplies_bfloat16(cpuinfo: Path = CPUINFO) -> bool:
    """Whether this processor has instructions for products of bfloat16 numbers.

    Without them such products are taken apart number by number, and are slower than those of float32 by a factor of two (one
    row) to twelve (500 rows). Where the system does not say, it is taken to have them.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    said = [line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return not said or not BFLOAT16.isdisjoint(said[0])


def cpu_dtype() -> str:
    """The type that a model kept in 16 bits is computed in on this machine's processor: ``bfloat16`` or ``float32``."""
    return "bfloat16" if multiplies_bfloat16() else "float32"
