"""Who runs the draft: the engine's own proposer, or ours inside the engine (``server.in_engine.direct_drafting``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.ragged import filled_up, is_ragged, zeros

PROPOSER = "server.in_engine.direct_drafting.DirectProposer"
ADDITIONAL = "understudy_draft"
"""Key of the engine's ``--additional-config`` that holds the draft's folder: ``custom_class`` has no place for it."""
SAMPLING = "understudy_draft_sampling"
"""Likewise for ``draft_sample_method``, where it is not ``probabilistic``."""
SAMPLE_METHODS = ("probabilistic", "greedy")

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
"""Values of ``model_type`` in config.json that direct drafting computes, with layers of one shape or of their own."""

SMALL_BYTES = 200_000_000
"""Weights of a draft up to here are run directly: beyond, arithmetic outweighs the dispatch that is saved."""

OPTIONS = {"method", "model", "num_speculative_tokens", "num_speculative_tokens_per_batch_size", "draft_sample_method"}


def unsupported(config: dict[str, Any]) -> str | None:
    """Why a checkpoint cannot be drafted with directly, told by its config.json; None if it can."""
    if is_ragged(config):
        try:
            config = filled_up(config)
        except KeyError as error:
            return f"its config.json has no {error}"
        except ValueError as error:
            return str(error)
    family = config.get("model_type")
    if family not in FAMILIES:
        return f"model_type {family!r} is none of {', '.join(FAMILIES)}"
    if config.get("hidden_act", "silu") != "silu":
        return f"hidden_act {config['hidden_act']!r} is not silu"
    sliding = config.get("sliding_window") is not None and config.get("use_sliding_window", family == "mistral")
    if sliding or set(config.get("layer_types") or ()) - {"full_attention"}:
        return "it has sliding-window attention"
    if config.get("quantization_config") is not None:
        return "its weights are quantized"
    return None


def can_be_direct(speculative_config: dict[str, Any] | None) -> bool:
    """Whether direct drafting does what a ``speculative_config`` asks for: one small draft, which proposes in a stated way."""
    if speculative_config is None or speculative_config.get("method") != "draft_model":
        return False
    if speculative_config.get("draft_sample_method") not in SAMPLE_METHODS or speculative_config.keys() - OPTIONS:
        return False
    folder = Path(str(speculative_config.get("model", "")))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except (OSError, ValueError):  # the engine says what is wrong with it
        return False
    if unsupported(config) is not None:
        return False
    if is_ragged(config):
        weights += zeros(config) * (4 if "32" in str(config.get("dtype") or config.get("torch_dtype")) else 2)
    return 0 < weights <= SMALL_BYTES


def direct_arguments(speculative_config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The ``speculative_config`` that puts our proposer in the place of the engine's, and the arguments that go with it."""
    kept = {k: v for k, v in speculative_config.items() if k.startswith("num_speculative_tokens")}
    told = {ADDITIONAL: str(speculative_config["model"])}
    if (how := speculative_config["draft_sample_method"]) != SAMPLE_METHODS[0]:
        told[SAMPLING] = how
    return {"method": "custom_class", "model": PROPOSER, **kept}, ["--additional-config", json.dumps(told)]
