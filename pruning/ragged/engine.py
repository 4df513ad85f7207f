"""Ragged models for vLLM: its own decoder layers, each built from its own shape. Only the engine imports this.

All families run in vLLM's Llama, which differs from theirs in the decoder layers only; Qwen2 is a Llama with biases in q, k and
v. Layers with fewer key-value heads have smaller pages in the KV cache; vLLM puts layers of one kind of attention into one
group whatever their pages' sizes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralDecoderLayer
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer
from vllm.model_executor.models.utils import extract_layer_index

from stages.ragged import RAGGED_TYPE


def _llama(vllm_config: VllmConfig, prefix: str, config: Any) -> nn.Module:
    return LlamaDecoderLayer(vllm_config=vllm_config, prefix=prefix, config=config)


def _mistral(vllm_config: VllmConfig, prefix: str, config: Any) -> nn.Module:
    return MistralDecoderLayer(vllm_config=vllm_config, prefix=prefix, config=config)


def _qwen2(vllm_config: VllmConfig, prefix: str, config: Any) -> nn.Module:
    config.qkv_bias = True  # vLLM's own Qwen2 layer derives the heads' width from their number
    return _llama(vllm_config, prefix, config)


def _qwen3(vllm_config: VllmConfig, prefix: str, config: Any) -> nn.Module:
    caches, quantization = vllm_config.cache_config, vllm_config.quant_config
    kinds = getattr(config, "layer_types", None)
    window = config.sliding_window if kinds and kinds[extract_layer_index(prefix)] == "sliding_attention" else None
    return Qwen3DecoderLayer(
        config, cache_config=caches, quant_config=quantization, prefix=prefix, per_layer_sliding_window=window
    )


LAYERS = {"llama": _llama, "mistral": _mistral, "ministral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3}


def _shaped(vllm_config: VllmConfig, prefix: str) -> nn.Module:
    """One decoder layer, of its family and its own shape."""
    config = vllm_config.model_config.hf_config
    family = config.model_type.removeprefix(RAGGED_TYPE)
    return LAYERS[family](vllm_config, prefix, config.of_layer(extract_layer_index(prefix)))


class RaggedForCausalLM(LlamaForCausalLM):
    """A model whose layers have shapes of their own."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=_shaped)
