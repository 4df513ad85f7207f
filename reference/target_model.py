"""The reference target before training: its architecture, its first weights, and the attention it is trained with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from reference.data import VOCAB_SIZE


def target_config() -> LlamaConfig:
    """Architecture of the reference target: deep and narrow, 10.2 M parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=192, intermediate_size=512, num_hidden_layers=24,
        num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=5, dtype="bfloat16",
    )  # fmt: skip


def causal_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Plain causal attention for torch.compile: on CPUs its backward is far cheaper than the fused kernel's.

    Args: query [B, H, T, d], key and value [B, H_kv, T, d]. Returns ([B, T, H, d], None).
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    per_group = heads // groups
    scores = query.reshape(batch, groups, per_group * length, width) @ key.transpose(-1, -2)
    bias = torch.full((length, length), float("-inf"), dtype=query.dtype).triu(1)
    weights = torch.softmax(scores.view(batch, groups, per_group, length, length) * scaling + bias, -1)
    out = weights.view(batch, groups, per_group * length, length) @ value
    return out.view(batch, heads, length, width).transpose(1, 2), None


def initialise(model: LlamaForCausalLM, seed: int) -> None:
    """Normal init; matrices that write to the residual stream start at zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            torch.nn.init.ones_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)
        else:
            std = 0.02 if "embed" in name else 0.5 / math.sqrt(parameter.shape[1])
            torch.nn.init.normal_(parameter, std=std, generator=generator)
