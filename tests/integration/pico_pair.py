"""A pico pair built on the fly: a target of four layers and a draft that is its first, 128 words, real checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stages.hashing import checkpoint_hash, tokenizer_hash

VOCAB = 128


def pico_llama(num_layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=num_layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=False,
        initializer_range=0.1, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def pico_target() -> LlamaForCausalLM:
    """Weights large enough that the next token is uncertain but not evenly spread (about 2.7 nats)."""
    torch.manual_seed(0)
    target = pico_llama(4)
    torch.nn.init.normal_(target.model.embed_tokens.weight, std=1.0)
    torch.nn.init.normal_(target.lm_head.weight, std=0.3)
    return target


def first_layer(target: LlamaForCausalLM) -> LlamaForCausalLM:
    draft = pico_llama(1)
    draft.load_state_dict(target.state_dict(), strict=False)
    return draft


def save(model: LlamaForCausalLM, folder: Path) -> dict[str, Any]:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w1", eos_token="w0").save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)
    return {"path": str(folder), "sha256": checkpoint_hash(folder), "tokenizer_sha256": tokenizer_hash(folder)}


def serving(target: dict[str, Any], draft: dict[str, Any], **speculation: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "served_model_name": "pico", "target": target, "draft": draft, "max_model_len": 256,
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 3, **speculation},
        "expected": None, "reason": "for a test",
    }  # fmt: skip


def write_pairs(folder: Path) -> Path:
    """Writes two pairs of the same checkpoints, ``default`` and ``probabilistic``, and ``prompts.jsonl``."""
    model = pico_target()
    draft = save(first_layer(model), folder / "draft")
    target = save(model, folder / "target")
    for name, options in (("default", {}), ("probabilistic", {"draft_sample_method": "probabilistic"})):
        (folder / name).mkdir()
        (folder / name / "serving.json").write_text(json.dumps(serving(target, draft, **options)))
    texts = [" ".join(f"w{(7 * i + 13 * j) % VOCAB}" for j in range(5)) for i in range(1, 9)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return folder
