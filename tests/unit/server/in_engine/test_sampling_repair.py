"""The plugin: replaces what a call shows to be faulty, leaves the rest, and costs nothing to import."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch

from server.in_engine.forked_core import SWITCH
from server.in_engine.sampling_repair import (
    REPAIRS,
    Repair,
    expand_is_faulty,
    generator_is_faulty,
    padding_is_judged,
    repaired_expand,
    repaired_generator,
    repaired_judging,
    repaired_top_k,
    top_k_is_faulty,
)


def right_expand(output: Any, values: Any, ends: Any, old: Any, new: Any, MAX_NUM_TOKENS: Any = None) -> None:
    """The slow reference: one place after the other."""
    start = 0
    for value, end in zip(values.tolist(), ends.tolist(), strict=True):
        for place in range(start, end):
            output[place] = new if value == old else value
        start = end


def faulty_expand(output: Any, values: Any, ends: Any, old: Any, new: Any, MAX_NUM_TOKENS: Any = None) -> None:
    """As in vLLM 0.32: fills an int64 copy of the output."""
    right_expand(output if output.dtype == torch.int64 else output.to(torch.int64), values, ends, old, new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_repaired_expand_equals_the_slow_reference(dtype: torch.dtype) -> None:
    values = torch.tensor([3, 0, 7, 2], dtype=dtype)
    ends = torch.tensor([1, 1, 4, 6], dtype=torch.int32)
    expected, output = torch.empty(6, dtype=dtype), torch.full((6,), 99, dtype=dtype)
    right_expand(expected, values, ends, 0, 1)
    repaired_expand(faulty_expand)(output, values, ends, 0, 1, MAX_NUM_TOKENS=128)
    assert output.tolist() == expected.tolist()


def test_repaired_expand_takes_no_tokens() -> None:
    output = torch.empty(0)
    repaired_expand(faulty_expand)(output, torch.tensor([1.0]), torch.tensor([0], dtype=torch.int32), 0, 1)
    assert output.shape == (0,)


def test_the_fault_is_seen_and_its_absence_too() -> None:
    assert expand_is_faulty(faulty_expand, torch)
    assert not expand_is_faulty(right_expand, torch)


def test_top_k_of_no_rows() -> None:
    def faulty(logits: Any, k: Any) -> Any:
        return logits.masked_fill(logits < logits.topk(int(k.max()), dim=1).values[:, -1:], -torch.inf)

    assert top_k_is_faulty(faulty, torch)
    fixed = repaired_top_k(faulty)
    assert not top_k_is_faulty(fixed, torch)
    logits, k = torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([2], dtype=torch.int32)
    assert fixed(logits, k).tolist() == faulty(logits, k).tolist()


def judging(
    output: Any, cu_num_draft_tokens: Any, draft_token_ids: Any, draft_probs: Any, target_probs: Any, bonus: Any, recovered: Any,
    uniform_probs: Any, is_greedy: Any, max_spec_len: int, vocab_size: int, *_: Any, **__: Any,
) -> None:  # fmt: skip
    """As vLLM 0.32 on a CPU, one draft token a request: -1 is a place like any other."""
    for row, token in enumerate(draft_token_ids.tolist()):
        place = row * vocab_size + token
        chance = target_probs.flatten()[place] / (1 if draft_probs is None else draft_probs.flatten()[place])
        output[row, 0] = token if chance >= uniform_probs[row] else recovered[row]


def test_padded_draft_tokens_are_rejected_and_others_judged_as_before() -> None:
    assert padding_is_judged(judging, torch)
    fixed = repaired_judging(judging)
    assert not padding_is_judged(fixed, torch)
    output, ids = torch.full((3, 2), -1), torch.tensor([1, -1, 0])
    target, draft = torch.tensor([[0.5, 0.5]] * 3), torch.tensor([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    rest = (
        torch.zeros(3, 1),
        torch.tensor([0, 1, 1]),
        torch.tensor([0.9, 0.0, 0.6]),
        torch.zeros(3, dtype=torch.bool),
        1,
        2,
    )
    fixed(output, torch.tensor([1, 2, 3]), ids, draft, target, *rest, NO_DRAFT_PROBS=False)
    assert output[:, 0].tolist() == [1, 1, 1]
    assert ids.tolist() == [1, -1, 0], "the engine's own tensors stay as they are"


@pytest.fixture
def engine_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("an_engine_module")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def repair_of(module: types.ModuleType) -> Repair:
    return Repair(module.__name__, "expand", expand_is_faulty, repaired_expand)


def test_a_faulty_function_is_replaced_where_it_is_held(engine_module: types.ModuleType) -> None:
    launcher = types.SimpleNamespace(func=faulty_expand)
    engine_module.__dict__.update(expand=faulty_expand, launcher=launcher)
    assert repair_of(engine_module).apply(torch)
    assert engine_module.expand is launcher.func is not faulty_expand
    assert not repair_of(engine_module).apply(torch)  # a second call finds nothing to do


def test_a_right_function_is_left_alone(engine_module: types.ModuleType) -> None:
    engine_module.__dict__.update(expand=right_expand)
    assert not repair_of(engine_module).apply(torch)
    assert engine_module.__dict__["expand"] is right_expand


def test_another_version_is_left_alone(engine_module: types.ModuleType) -> None:
    assert not repair_of(engine_module).apply(torch)  # no such function
    engine_module.__dict__.update(expand=lambda output: None)
    assert not repair_of(engine_module).apply(torch)  # another signature


def test_a_probe_that_fails_in_an_unknown_way_leaves_the_function_alone(engine_module: types.ModuleType) -> None:
    def expand(*arguments: Any) -> None:
        raise ZeroDivisionError

    engine_module.__dict__.update(expand=expand)
    assert not repair_of(engine_module).apply(torch)
    assert engine_module.__dict__["expand"] is expand


def run_python(code: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=400, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def test_importing_the_plugin_imports_neither_torch_nor_vllm() -> None:
    code = "import server.in_engine.sampling_repair, sys; print(sorted({'torch', 'vllm', 'transformers'} & set(sys.modules)))"
    assert run_python(code) == "[]"


REAL = """
import torch
import vllm.v1.engine.utils
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides()
from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens
from vllm.utils import cpu_triton_utils
from server.in_engine.sampling_repair import padding_is_judged
assert not padding_is_judged(cpu_triton_utils._rejection_random_sample_kernel_impl, torch)
ends = torch.tensor([2, 5], dtype=torch.int32)
found = expand_batch_to_tokens(torch.tensor([0.5, 0.0]), ends, 5, 0, 1).tolist()
print(found, vllm.v1.engine.utils.get_mp_context().get_start_method())
"""
"""With vLLM's own modules, as installed; importing them takes ten seconds, so both plugins are tried in one process."""


@pytest.mark.engine
def test_vllm_loads_the_plugin_before_it_binds_its_kernels_and_forks_its_core_where_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SWITCH, "on")
    assert run_python(REAL) == "[0.5, 0.5, 1.0, 1.0, 1.0] fork"


def test_repairs_name_functions_of_the_engine() -> None:
    assert {repair.function for repair in REPAIRS} == {
        "_expand_kernel_impl", "apply_top_k_only", "_rejection_random_sample_kernel_impl", "Generator"
    }  # fmt: skip


def test_a_repaired_generator_can_be_rewound_and_still_draws() -> None:
    assert generator_is_faulty(torch.Generator, torch)
    repaired = repaired_generator(torch.Generator)
    assert not generator_is_faulty(repaired, torch)
    ours, theirs = repaired(device="cpu").manual_seed(3), torch.Generator(device="cpu").manual_seed(3)
    ours.set_offset(ours.get_offset() - 4)
    drawn = torch.empty(5).exponential_(generator=ours)
    assert torch.equal(drawn, torch.empty(5).exponential_(generator=theirs))
