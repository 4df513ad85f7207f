"""The configs of ragged models: a family's own, and what each layer's shape is."""

from __future__ import annotations

import copy
from typing import Any, Self

from transformers import (
    AutoConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from stages.ragged import LISTS, RAGGED_TYPE


class RaggedConfig(PreTrainedConfig):
    """What ragged configs add. A list that is None leaves its key the same for all layers."""

    layer_intermediate_sizes: list[int] | None = None
    layer_attention_heads: list[int] | None = None
    layer_key_value_heads: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for key in LISTS:
            sizes = getattr(self, key)
            if sizes is not None and (len(sizes) != self.num_hidden_layers or min(sizes) < 1):
                raise ValueError(f"{key} must hold {self.num_hidden_layers} numbers of at least 1, given {sizes}")
        if getattr(self, "head_dim", None) is None:  # no layer may derive it from its own number of heads
            self.head_dim = self.hidden_size // self.num_attention_heads

    def of_layer(self, index: int) -> Self:
        """The same config with the shape of one layer, for the family's own layer class."""
        one = copy.copy(self)
        for key, plain in LISTS.items():
            sizes = getattr(self, key)
            if sizes is not None:
                setattr(one, plain, sizes[index])
        return one


class RaggedLlamaConfig(LlamaConfig, RaggedConfig):
    """A Llama's."""

    model_type = RAGGED_TYPE + "llama"


class RaggedMistralConfig(MistralConfig, RaggedConfig):
    """A Mistral's."""

    model_type = RAGGED_TYPE + "mistral"


class RaggedMinistralConfig(MinistralConfig, RaggedConfig):
    """A Ministral's: what transformers makes of a Mistral with layer_types."""

    model_type = RAGGED_TYPE + "ministral"


class RaggedQwen2Config(Qwen2Config, RaggedConfig):
    """A Qwen2's."""

    model_type = RAGGED_TYPE + "qwen2"


class RaggedQwen3Config(Qwen3Config, RaggedConfig):
    """A Qwen3's."""

    model_type = RAGGED_TYPE + "qwen3"


RAGGED: dict[type[PreTrainedConfig], type[RaggedConfig]] = {
    LlamaConfig: RaggedLlamaConfig, MistralConfig: RaggedMistralConfig, MinistralConfig: RaggedMinistralConfig,
    Qwen2Config: RaggedQwen2Config, Qwen3Config: RaggedQwen3Config,
}  # fmt: skip
"""The ragged config of each plain one."""


def register() -> None:
    """Makes ``AutoConfig`` know ragged configs; more than once does no harm."""
    for config in RAGGED.values():
        AutoConfig.register(config.model_type, config, exist_ok=True)
