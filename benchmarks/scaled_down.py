"""Runs a recipe for a large target end to end on a random model of its architecture, scaled down.

``python -m benchmarks.scaled_down recipes/llama-3.1-8b.yaml`` makes the model under ``build/scaled-down``, with the embedded
reference target's tokenizer and prompts, and walks all stages with the recipe's own way of pruning, distilling and recovering;
only amounts are cut down, arguments of engines left out that ask for several GPUs, and the draft is trained in two processes
(``accelerate launch``). It shows that the way is whole on that
architecture, not what a draft gains.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from drafts.building import build, read_recipe
from pruning.checkpoint import copy_companions
from stages.folders import write_text

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "reference"
OUT = Path("build/scaled-down")

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 131072, "vocab_size": 128256, "tie_word_embeddings": False,
    "num_key_value_heads": 8, "torch_dtype": "bfloat16",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        **LLAMA, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32
    },
    "llama-3.1-70b": {
        **LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64
    },
    "qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "max_position_embeddings": 40960, "vocab_size": 151936, "tie_word_embeddings": False,
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "torch_dtype": "bfloat16",
    },
}  # fmt: skip
"""The real targets' config.json, as far as it decides sizes; by the names of the recipes."""

AMOUNTS: dict[str, dict[str, Any]] = {
    "distill": {"max_prompts": 32, "max_tokens": 24, "concurrency": 8, "engine_args": ()},
    "recover": {"tokens": 12_000, "batch_tokens": 2048, "max_length": 256, "adam_learning_rate": 0.002},
    "measure": {"prompts_per_kind": 1, "max_tokens": 16, "repeats": 1, "concurrencies": (1, 2), "engine_args": ()},
}


HEAD_DIM = 32
"""The smallest that vLLM's attention on CPUs has kernels for."""


def scaled_config(name: str, layers: int = 8) -> dict[str, Any]:
    """A real config with the same kind and proportions of layers, small enough for two cores."""
    real = CONFIGS[name]
    heads = 8
    groups = max(1, heads * real["num_key_value_heads"] // real["num_attention_heads"])
    hidden = HEAD_DIM * heads
    head_dim = {"head_dim": HEAD_DIM} if "head_dim" in real else {}
    return {
        **real, **head_dim, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": hidden * real["intermediate_size"] // real["hidden_size"], "num_hidden_layers": layers,
        "vocab_size": 4096, "max_position_embeddings": 2048, "initializer_range": 0.1,
    }  # fmt: skip


def make_target(name: str, folder: Path) -> None:
    """A random model of the scaled architecture in bf16, with the reference target's tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokens = json.loads((REFERENCE / "target" / "config.json").read_text(encoding="utf-8"))
    ids = {key: tokens.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_text(folder / "config.json", json.dumps({**scaled_config(name), **ids}, indent=2) + "\n")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    copy_companions(REFERENCE / "target", folder)


def run(recipe_file: Path) -> Path:
    """Builds the scaled-down pair of a recipe; returns its folder."""
    values = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    home = (OUT / values["name"]).resolve()
    make_target(values["name"], home / "target")
    for stage, amounts in AMOUNTS.items():
        values[stage] = {**values.get(stage, {}), **amounts}
        values[stage] = {key: list(v) if isinstance(v, tuple) else v for key, v in values[stage].items()}
    prompts = {part: str(REFERENCE / "prompts" / f"{part}.jsonl") for part in ("train", "validation", "heldout")}
    values |= {
        "target": str(home / "target"),
        "prompts": prompts,
        "out": str(home / "out"),
        "max_model_len": 512,
        "processes": 2,
    }
    values["choose"] = {"min_gain": 0.0}
    scaled = home / "recipe.yaml"
    write_text(scaled, yaml.safe_dump(values, sort_keys=False))
    return build(read_recipe(scaled))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(run(Path(argument)))
