from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from server.drafting import ADDITIONAL, SAMPLING, SMALL_BYTES, can_be_direct
from server.engine_command import EngineSettings, command, environment, preloadable

BACKEND = "--distributed-executor-backend"

DRAFT = {"method": "draft_model", "num_speculative_tokens": 3, "draft_sample_method": "probabilistic"}


def settings(**more: object) -> EngineSettings:
    return EngineSettings.model_validate({"model": "/m", "log_file": "/l", "cpu": True, **more})


def test_speculation_brings_its_per_request_record() -> None:
    config = {"method": "ngram", "num_speculative_tokens": 4}
    line = command(settings(speculative_config=config), 1234)
    assert json.loads(line[line.index("--speculative-config") + 1]) == config
    assert line[line.index("--per-request-spec-decode-metrics") + 1] == "summary"
    assert "--per-request-spec-decode-metrics" not in command(settings(), 1234)


def test_the_engine_listens_on_loopback_only() -> None:
    line = command(settings(max_model_len=512, extra_args=("--seed", "1")), 1234)
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert line[line.index("--max-model-len") + 1] == "512"
    assert line[-2:] == ["--seed", "1"]


def test_eager_on_a_cpu_unless_told_otherwise() -> None:
    assert "--enforce-eager" in command(settings(), 1)
    assert "--enforce-eager" not in command(settings(cpu=False), 1)
    assert "--enforce-eager" not in command(settings(enforce_eager=False), 1)


def test_no_worker_process_where_cores_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(**more: object) -> bool:
        line = command(settings(**more), 1)
        return BACKEND in line and line[line.index(BACKEND) + 1].startswith("server.")

    monkeypatch.setattr("server.engine_command.usable_cores", lambda: 2)
    assert in_process()
    assert not in_process(cpu=False)
    assert not in_process(in_process=False)
    assert not in_process(extra_args=("--tensor-parallel-size", "2"))
    assert not in_process(extra_args=("--distributed-executor-backend=mp",))
    assert environment(settings(), {})["OMP_NUM_THREADS"] == "1"
    assert environment(settings(), {})["UNDERSTUDY_FORKED_CORE"] == "on"
    assert "UNDERSTUDY_FORKED_CORE" not in environment(settings(in_process=False), {})
    assert environment(settings(spare_core=False), {})["OMP_NUM_THREADS"] == "2"
    assert environment(settings(), {"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"
    monkeypatch.setattr("server.engine_command.usable_cores", lambda: 64)
    assert not in_process()
    assert in_process(in_process=True)
    assert "OMP_NUM_THREADS" not in environment(settings(), {})


def test_environment_of_a_cpu_engine() -> None:
    made = environment(settings(preload=False, environment={"X": "1"}), {"PATH": "/bin"})
    assert made["PATH"] == "/bin"
    assert (made["HF_HUB_OFFLINE"], made["VLLM_CPU_KVCACHE_SPACE"], made["X"]) == ("1", "1", "1")
    assert "LD_PRELOAD" not in made
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(settings(cpu=False), {})


def test_what_a_cpu_engine_compiles_is_kept_for_all_engines_of_a_model() -> None:
    compiling = settings(enforce_eager=False)
    made = environment(compiling, {"VLLM_CACHE_ROOT": "/cache/vllm"})
    assert (made["VLLM_DISABLE_COMPILE_CACHE"], made["TORCHINDUCTOR_CACHE_DIR"]) == ("1", "/cache/vllm/inductor")
    assert environment(compiling, {"XDG_CACHE_HOME": "/c"})["TORCHINDUCTOR_CACHE_DIR"] == "/c/vllm/inductor"
    assert environment(compiling, {"TORCHINDUCTOR_CACHE_DIR": "/theirs"})["TORCHINDUCTOR_CACHE_DIR"] == "/theirs"
    assert "VLLM_DISABLE_COMPILE_CACHE" not in environment(settings(), {})
    assert "VLLM_DISABLE_COMPILE_CACHE" not in environment(settings(cpu=False, enforce_eager=False), {})


def test_libraries_are_preloaded_where_they_are_found(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    openmp = tmp_path / "lib" / "libiomp5.so"
    assert str(openmp) not in preloadable(tmp_path)
    openmp.write_bytes(b"")
    made = environment(settings(python=tmp_path / "bin" / "python"), {"LD_PRELOAD": "theirs.so"})
    assert made["LD_PRELOAD"].split(":")[0] == str(openmp)
    assert made["LD_PRELOAD"].split(":")[-1] == "theirs.so"


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_small_draft_is_run_directly_on_a_cpu(draft: Path) -> None:
    schedule = {"num_speculative_tokens_per_batch_size": [[1, 8, 3], [9, 16, 1]]}
    line = command(settings(speculative_config={**DRAFT, "model": str(draft), **schedule}), 1)
    config = json.loads(line[line.index("--speculative-config") + 1])
    module, name = config.pop("model").rsplit(".", 1)
    assert config == {"method": "custom_class", "num_speculative_tokens": 3, **schedule}
    assert hasattr(importlib.import_module(module), name)
    assert json.loads(line[line.index("--additional-config") + 1]) == {ADDITIONAL: str(draft)}
    assert line[line.index("--per-request-spec-decode-metrics") + 1] == "summary"


def test_a_direct_draft_is_told_to_propose_its_likeliest_tokens(draft: Path) -> None:
    asked = {**DRAFT, "model": str(draft), "draft_sample_method": "greedy"}
    line = command(settings(speculative_config=asked), 1)
    assert json.loads(line[line.index("--additional-config") + 1]) == {ADDITIONAL: str(draft), SAMPLING: "greedy"}


@pytest.mark.parametrize(
    ("more", "config"),
    [
        ({"cpu": False}, {}),
        ({"direct_drafting": False}, {}),
        ({"extra_args": ("--tensor-parallel-size=2",)}, {}),
        ({"extra_args": ("--additional-config={}",)}, {}),
        ({}, {"draft_sample_method": "another"}),
        ({}, {"parallel_drafting": True}),
        ({}, {"method": "eagle"}),
    ],
)
def test_otherwise_the_engine_drafts_itself(draft: Path, more: dict[str, object], config: dict[str, object]) -> None:
    asked = {**DRAFT, "model": str(draft), **config}
    line = command(settings(speculative_config=asked, **more), 1)
    assert json.loads(line[line.index("--speculative-config") + 1]) == asked


def test_drafts_that_are_large_or_of_another_family_are_left_to_the_engine(draft: Path) -> None:
    asked = {**DRAFT, "model": str(draft)}
    assert can_be_direct(asked)
    with (draft / "model.safetensors").open("wb") as file:
        file.truncate(SMALL_BYTES + 1)
    assert not can_be_direct(asked)
    (draft / "model.safetensors").write_bytes(b"weights")
    (draft / "config.json").write_text(json.dumps({"model_type": "gemma3"}))
    assert not can_be_direct(asked)
    (draft / "config.json").write_text("{")
    assert not can_be_direct(asked)
    assert not can_be_direct({**DRAFT, "model": "/nowhere"})
    assert not can_be_direct(None)


def test_of_a_ragged_draft_the_zeros_count_that_fill_it_up(draft: Path) -> None:
    shape = {"hidden_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 32, "num_key_value_heads": 8}
    for widths, direct in (([4096, 4096], True), ([4096, 16384], False)):  # 3 x 4096 x 12288 zeros of two bytes
        config = {"model_type": "understudy_ragged_llama", **shape, "layer_intermediate_sizes": widths}
        (draft / "config.json").write_text(json.dumps(config))
        assert can_be_direct({**DRAFT, "model": str(draft)}) is direct


@pytest.mark.parametrize(("has", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_computes_in_the_type_it_is_quick_at(monkeypatch: pytest.MonkeyPatch, has: bool, dtype: str) -> None:
    monkeypatch.setattr("stages.processor.multiplies_bfloat16", lambda: has)
    assert settings(cpu=True).computed_dtype == dtype
    assert settings(cpu=False).computed_dtype == "auto"
    assert settings(cpu=True, dtype="float16").computed_dtype == "float16"
    for said in (("--dtype", "half"), ("--x", "--dtype=half"), ("--dtype", "float32", "--dtype", "half")):
        assert settings(cpu=True, extra_args=said).computed_dtype == "half"
    arguments = command(settings(cpu=True), 1)
    assert arguments[arguments.index("--dtype") + 1] == dtype
