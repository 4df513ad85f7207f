"""An executor that runs the model inside the engine's core process. It is imported by the engine, never by the gateway.

vLLM gives the model a worker process of its own on a CPU, and quietly turns its own in-process executor ("uni") into that one.
A worker costs a third of an engine's start (one more process that imports everything), and both ends of its queue spin:
during a step, and for a second after the last one. That is nothing on a server with many cores and half the machine on two.
"""

from __future__ import annotations

from vllm.v1.executor.uniproc_executor import UniProcExecutor


class InProcessExecutor(UniProcExecutor):
    """vLLM's own executor without a worker, under a name that the CPU platform does not replace.

    What vLLM sets for a worker's OpenMP threads is set in the engine's environment (``engine_command.environment``), except for
    their binding to cores, which would bind the engine's other processes too.
    """
