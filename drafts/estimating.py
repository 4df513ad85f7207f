"""What a build will weigh and roughly how long it will take, from configs alone: ``understudy build --dry-run``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from drafts.building import Recipe
from drafts.methods import wants_suffix
from drafts.prompts import Prompt, read_prompts
from pruning.checkpoint import load_config
from pruning.prune import decide
from pruning.settings import PruneSettings
from pruning.sizes import Sizes, sizes
from pruning.width import check_width
from stages.processor import multiplies_bfloat16

STEP_OVERHEAD_PER_LAYER_S = 0.0005
"""What dispatching a layer's operations takes in a step of the engine, on two cores."""
ENGINE_START_S = 60.0
CUT_S = 5.0
"""Reading the layers that stay, and writing them."""
CHARS_PER_TOKEN = 3.3
"""Of the reference tokenizer on code and chat."""
USABLE = 0.25
"""Share of the matrix speed that answering and training reach."""
BYTES_PER_S = 20e9
"""Memory bandwidth that a step reads the weights at."""
DRAFTED = 0.55
"""Mean time of a measured engine's answer over a plain one's."""


@dataclass(frozen=True)
class Line:
    """One line of the estimate: stage, what it does, seconds (None: not estimated)."""

    stage: str
    what: str
    seconds: float | None


def flops_per_second(seconds: float = 0.4) -> float:
    """Multiply-adds this machine does in products of training shape, times two, per second, in the type it computes models in."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" or multiplies_bfloat16() else torch.float32
    a, b = (torch.ones(2048, 1024, dtype=dtype, device=device) for _ in range(2))
    a @ b.T
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        (a @ b.T).sum().item()
        count += 1
    return count * 2 * 2048 * 2048 * 1024 / (time.perf_counter() - started)


def _prompt_tokens(prompts: list[Prompt]) -> float:
    return sum(len(prompt.text) for prompt in prompts) / CHARS_PER_TOKEN


def recovery_bytes(draft: Sizes, method: str) -> int:
    """Memory for weights, gradients and optimiser moments in float32; LoRA keeps only the weights."""
    return draft.total * (16 if method == "full" else 4)


LOGITS_KEPT = 4
"""Of each judged position: the draft's and the target's logits, the loss's gradient and what flows back."""
ACTIVATIONS_PER_LAYER = 34
"""Bytes a layer keeps for the backward pass, per token and hidden unit in 16 bit (arXiv 2205.05198, equation 2, without attention's
scores)."""


def batch_bytes(config: Any, layers: int, batch_tokens: int, bytes_per_number: int = 2) -> int:
    """Memory for one batch of recovery beside the weights: logits of both models, and the draft's activations."""
    logits = LOGITS_KEPT * config.vocab_size * bytes_per_number
    activations = ACTIVATIONS_PER_LAYER // 2 * bytes_per_number * config.hidden_size * layers
    return batch_tokens * (logits + activations)


def scoring_flops(settings: PruneSettings, target: Sizes, kept: int, scored: bool) -> float:
    """What pruning computes before layers are cut: nothing, a pass over the calibration text, or the greedy removal's many.

    Args:
        target: its sizes.
        kept: how many layers stay.
        scored: whether the method scores layers.
    """
    if not scored:
        return 2.0 * target.work * settings.calibration_tokens if settings.mlp_width is not None else 0.0
    if settings.method != "greedy_kl":
        return 2.0 * target.work * settings.calibration_tokens
    work = 0.0
    for left in range(kept + 1, target.num_layers + 1):  # one pass, then each layer's candidate from that layer on
        work += left * target.per_layer + left * (left / 2 * target.per_layer + target.lm_head_work)
    return 2 * work * min(settings.greedy_tokens, settings.calibration_tokens)


def estimate(recipe: Recipe, rate: float) -> tuple[Sizes, Sizes, list[Line]]:
    """(sizes of the target, of the draft, lines of the estimate) at ``rate`` FLOPs per second."""
    config = load_config(recipe.target)
    layers = config.num_hidden_layers
    kept = decide(layers, recipe.prune)
    count = len(kept) if kept is not None else recipe.prune.kept_count(layers)
    if recipe.prune.mlp_width is not None:
        check_width(config, recipe.prune.mlp_width)
    target, draft = sizes(config), sizes(config, range(count), recipe.prune.mlp_width)
    prompts = read_prompts(recipe.prompts.train)[: recipe.distill.max_prompts]
    rounds = -(-len(prompts) // recipe.distill.concurrency)
    answered = len(prompts) * recipe.distill.max_tokens
    usable = USABLE * rate
    generate = (
        rounds * recipe.distill.max_tokens * layers * STEP_OVERHEAD_PER_LAYER_S + 2 * target.work * answered / usable
    )
    teacher = 2 * target.work * (answered + _prompt_tokens(prompts)) / usable
    train = 6 * draft.work * recipe.recover.tokens / usable
    limit = recipe.recover.max_seconds
    which = list(kept) if kept is not None else f"{count} by {recipe.prune.method}"
    step = layers * STEP_OVERHEAD_PER_LAYER_S + target.bytes() / BYTES_PER_S
    measured = 2 * recipe.measure.repeats * len(recipe.measure.temperatures) * recipe.measure.prompts_per_kind
    cut = CUT_S + scoring_flops(recipe.prune, target, count, scored=kept is None) / usable
    weights = f"{draft.total / 1e6:,.1f} M parameters, {draft.bytes() / 2**20:,.0f} MiB in bf16"
    trained = recovery_bytes(draft, recipe.recover.method) / 2**20
    batch = batch_bytes(config, count, recipe.recover.batch_tokens) / 2**20
    memory = (
        f"{trained:,.0f} MiB for training, {batch:,.0f} MiB for a batch, "
        f"{target.bytes() / 2**20:,.0f} MiB for the target as teacher"
    )
    engines = (6 if recipe.recover.parallel_tokens else 4) + wants_suffix(recipe.measure.suffix)
    learn = min(teacher + train, limit) if limit else teacher + train
    served = engines / 2 * ENGINE_START_S + DRAFTED * engines * measured * recipe.measure.max_tokens * step
    return target, draft, [
        Line("prune", f"layers {which} of {layers} → {weights}", cut),
        Line("distill", f"up to {answered:,} tokens from {len(prompts):,} prompts", ENGINE_START_S + generate),
        Line("recover", f"{recipe.recover.tokens:,} positions, {memory}", learn),
        Line("measure", f"{engines} engines, {measured} prompts each", served),
        Line("choose", "decide from the measurements", 1.0),
    ]  # fmt: skip
