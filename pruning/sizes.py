"""Parameter counts from a config alone: what a target and its draft weigh, without their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pruning.families import Family, family_of


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters; ``layers`` are those of all decoder layers.

    ``lm_head`` is 0 where it shares the embeddings' weights; its multiplications are done all the same
    (``lm_head_work``).
    """

    num_layers: int
    embeddings: int
    layers: int
    final_norm: int
    lm_head: int
    lm_head_work: int

    @property
    def total(self) -> int:
        """All parameters, shared ones counted once."""
        return self.embeddings + self.layers + self.final_norm + self.lm_head

    @property
    def work(self) -> int:
        """Weights that one token is multiplied with: layers and lm_head, no embeddings. Twice this is its FLOPs."""
        return self.layers + self.final_norm + self.lm_head_work

    @property
    def per_layer(self) -> float:
        """Parameters of one layer; on average where they differ."""
        return self.layers / self.num_layers

    def bytes(self, bytes_per_parameter: int = 2) -> int:
        """Size of the weights; two bytes a parameter for bf16."""
        return self.total * bytes_per_parameter


def _has(bias: bool | str, config: Any) -> bool:
    """Whether a bias is there: fixed by the family, or decided by the config key it names."""
    return bias if isinstance(bias, bool) else bool(getattr(config, bias, False))


def _attention(config: Any, family: Family, layer: int) -> int:
    """Parameters of one layer's attention: q, k, v, o, their biases, and the query and key norms."""
    hidden, all_heads = config.hidden_size, config.num_attention_heads
    head = getattr(config, "head_dim", None) or hidden // all_heads
    heads = _of_layer(config, "layer_attention_heads", layer, all_heads)
    query = heads * head
    key = _of_layer(config, "layer_key_value_heads", layer, config.num_key_value_heads or all_heads) * head
    biases = _has(family.qkv_bias, config) * (query + 2 * key) + _has(family.output_bias, config) * hidden
    return 2 * hidden * query + 2 * hidden * key + biases + family.query_key_norm * 2 * head


def _of_layer(config: Any, key: str, layer: int, otherwise: int) -> int:
    """One layer's entry of a ragged config's list; where there is none, what all layers have."""
    values = getattr(config, key, None)
    return otherwise if values is None else int(values[layer])


def _layer(config: Any, family: Family, layer: int, mlp_width: int | None) -> int:
    """Parameters of one decoder layer."""
    hidden = config.hidden_size
    width = mlp_width or _of_layer(config, "layer_intermediate_sizes", layer, config.intermediate_size)
    mlp = 3 * hidden * width + _has(family.mlp_bias, config) * (2 * width + hidden)
    return _attention(config, family, layer) + mlp + 2 * hidden


def sizes(config: Any, kept_layers: Sequence[int] | None = None, mlp_width: int | None = None) -> Sizes:
    """Counts the parameters of a model, or of what is left of it when only ``kept_layers`` stay.

    Args:
        config: a transformers config of a known family.
        kept_layers: indices of the layers that stay; None for all.
        mlp_width: channels of every MLP that stay; None for all.
    """
    family = family_of(config)
    kept = range(config.num_hidden_layers) if kept_layers is None else kept_layers
    embeddings = config.vocab_size * config.hidden_size
    return Sizes(
        num_layers=len(kept),
        embeddings=embeddings,
        layers=sum(_layer(config, family, layer, mlp_width) for layer in kept),
        final_norm=config.hidden_size,
        lm_head=0 if config.tie_word_embeddings else embeddings,
        lm_head_work=embeddings,
    )
