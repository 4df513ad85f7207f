"""Ragged models for transformers: a family's own classes, each layer built from its own shape. Importing this registers them."""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MinistralForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from pruning.ragged import config as configs


class RaggedLayers:
    """Gives each decoder layer the shape that the config says; stands before a family's class for causal language models."""

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        model: Any = self
        for index, layer in enumerate(model.model.layers):
            shaped = type(layer)(config.of_layer(index), index)
            shaped.self_attn.config = config  # where it looks up the attention's implementation, which can change
            model.model.layers[index] = shaped
        model.post_init()


class UnderstudyRaggedLlamaForCausalLM(RaggedLayers, LlamaForCausalLM):
    """A Llama."""

    config_class = configs.RaggedLlamaConfig


class UnderstudyRaggedMistralForCausalLM(RaggedLayers, MistralForCausalLM):
    """A Mistral."""

    config_class = configs.RaggedMistralConfig


class UnderstudyRaggedMinistralForCausalLM(RaggedLayers, MinistralForCausalLM):
    """A Mistral with layer_types."""

    config_class = configs.RaggedMinistralConfig


class UnderstudyRaggedQwen2ForCausalLM(RaggedLayers, Qwen2ForCausalLM):
    """A Qwen2."""

    config_class = configs.RaggedQwen2Config


class UnderstudyRaggedQwen3ForCausalLM(RaggedLayers, Qwen3ForCausalLM):
    """A Qwen3."""

    config_class = configs.RaggedQwen3Config


MODELS = (
    UnderstudyRaggedLlamaForCausalLM, UnderstudyRaggedMistralForCausalLM, UnderstudyRaggedMinistralForCausalLM,
    UnderstudyRaggedQwen2ForCausalLM, UnderstudyRaggedQwen3ForCausalLM,
)  # fmt: skip


def register() -> None:
    """Makes ``AutoConfig`` and ``AutoModelForCausalLM`` know ragged models; more than once does no harm."""
    configs.register()
    for model in MODELS:
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)


register()
