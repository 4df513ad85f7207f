"""Pico models and tokenizers, built on the fly: every family, tied and untied, small enough for a test."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from pruning.plan import WidthPlan

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
VOCABULARY = 256 + len(SPECIALS)
LAYERS = 5


@dataclass(frozen=True)
class Pico:
    """One case of the contract suite: a config class and what makes it this case."""

    name: str
    config_class: Any
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, **changes: Any) -> Any:
        shape = {
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": 256, "pad_token_id": None,
        }  # fmt: skip
        return self.config_class(**{**shape, **self.options, **changes})

    def model(self, seed: int = 0, **changes: Any) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(self.config(**changes), dtype=torch.float32).eval()
            for name, parameter in model.named_parameters():
                if name.endswith((".bias", "norm.weight")):  # zeros and ones would hide a mix-up
                    torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
        return model


SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention"] * LAYERS}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}

CASES = [
    Pico("llama-tied", LlamaConfig, {"tie_word_embeddings": True}),
    Pico("llama-untied", LlamaConfig),
    Pico("llama-biases", LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    Pico("mistral-tied", MistralConfig, {"tie_word_embeddings": True, "sliding_window": None}),
    Pico("mistral-sliding", MistralConfig, SLIDING),
    Pico("ministral-mixed", MinistralConfig, {"head_dim": 8, "sliding_window": 4, "layer_types": MIXED}),
    Pico("qwen2-tied", Qwen2Config, {"tie_word_embeddings": True}),
    Pico("qwen2-windows", Qwen2Config, WINDOWS),
    Pico("qwen3-tied", Qwen3Config, {"tie_word_embeddings": True, "head_dim": 16, **WINDOWS}),
    Pico("qwen3-untied", Qwen3Config, {"head_dim": 8, "attention_bias": True}),
]
LLAMA = CASES[0]


WIDTHS, GROUPS = (20, 7, 48, 33, 1), ((0, 1), (1,), (0,), (0, 1), (1,))


def a_plan(**changes: Any) -> WidthPlan:
    """What stays of a case when each layer gets a shape of its own."""
    generator = torch.Generator().manual_seed(3)
    channels = tuple(tuple(sorted(torch.randperm(48, generator=generator)[:width].tolist())) for width in WIDTHS)
    values = {
        "target_sha256": "any", "architecture": "any", "num_layers": LAYERS, "method": "nuteprune",
        "criterion": "masks", "export": "ragged", "sparsity": 0.5, "realised_sparsity": 0.5, "num_channels": 48,
        "num_groups": 2, "kept_channels": channels, "kept_groups": GROUPS,
    }  # fmt: skip
    return WidthPlan(**{**values, **changes})


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token per byte."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", chat_template=TEMPLATE)


def save(model: PreTrainedModel, folder: Path) -> Path:
    """A whole target folder: weights, config, tokenizer."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Changes keys of a saved config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def ids(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    """Random token ids [rows, length]."""
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
