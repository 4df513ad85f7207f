"""An executor that runs the model inside the engine's core process. It is imported by the engine, never by the gateway.

vLLM gives the model a worker process of its own on a CPU, and quietly turns its own in-process executor ("uni") into that one.
A worker costs a third of an engine's start (one more process that imports everything), and both ends of its queue spin:
during a step, and for a second after the last one. That is nothing on a server with many cores and half the machine on two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor

MUCH_WORK = 1_000_000_000
"""Multiply-adds of a step from which on every core takes part in it, the front end's spare one too.

Below, another thread costs more than it brings: a step is mostly dispatch, and the threads that wait for its next piece do so on
the core that gateway and front end need. Of a model of 10 M weights this is a hundred tokens: prompts, not the steps between
them. On two cores such prompts are read in two thirds of the time (EXPERIMENTS).
"""


class Threads:
    """How many threads compute a step.

    Args:
        few: threads of a step with little work.
        every: of one with much.
        weights: numbers that a token is multiplied with in a step.
        set_number: torch's own function, which vLLM's worker on CPUs replaces by one that does nothing.
    """

    def __init__(self, few: int, every: int, weights: int, set_number: Callable[[int], None]):
        self._few, self._every = few, max(few, every)
        self._weights = weights
        self._set = set_number

    def take(self, num_tokens: int) -> None:
        """Sets the number for a step of so many tokens."""
        self._set(self._every if num_tokens * self._weights >= MUCH_WORK else self._few)


class InProcessExecutor(UniProcExecutor):
    """vLLM's own executor without a worker, under a name that the CPU platform does not replace.

    What vLLM sets for a worker's OpenMP threads is set in the engine's environment (``engine_command.environment``), except for
    their binding to cores, which would bind the engine's other processes too. Steps with much work use all cores.
    """

    def _init_executor(self) -> None:
        few = torch.get_num_threads()  # a proposer's start can change it (n-gram)
        set_number = torch.set_num_threads
        super()._init_executor()
        model = self.collective_rpc("get_model", single_value=True)
        weights = sum(parameter.numel() for parameter in model.parameters())
        self._threads = Threads(few, len(os.sched_getaffinity(0)), weights, set_number)

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """One step, on as many threads as its work is worth."""
        self._threads.take(scheduler_output.total_num_scheduled_tokens)
        return super().execute_model(scheduler_output, non_block)
