"""Prompts as the engine reads them: chat messages through the template, text with the tokenizer's special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from drafts.prompts import Prompt
from stages.errors import InputError
from stages.progress import log


def rendered(prompt: Prompt, tokenizer: Any) -> str:
    """The text that the model sees for a prompt (chat messages through the chat template)."""
    if prompt.prompt is not None:
        return prompt.prompt
    if not tokenizer.chat_template:
        raise InputError(f"prompt {prompt.id} is a chat, but the target's tokenizer has no chat template")
    messages = [message.model_dump() for message in prompt.messages or ()]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def prompt_ids(prompt: Prompt, tokenizer: Any) -> list[int]:
    """Token ids of a prompt. As in vLLM, text gets the tokenizer's special tokens (BOS); a chat has its template's."""
    text = rendered(prompt, tokenizer)
    return list(tokenizer(text, add_special_tokens=prompt.prompt is not None)["input_ids"])


def fitting(prompts: Sequence[Prompt], tokenizer: Any, max_model_len: int, max_tokens: int) -> list[Prompt]:
    """The prompts that leave room for ``max_tokens`` of answer; says how many were left out.

    Raises:
        InputError: none fits.
    """
    room = max_model_len - max_tokens
    kept = [prompt for prompt in prompts if len(prompt_ids(prompt, tokenizer)) <= room]
    if not kept:
        raise InputError(
            f"no prompt fits: max_model_len {max_model_len} leaves {room} tokens beside max_tokens {max_tokens}; "
            "raise max_model_len or lower max_tokens"
        )
    if len(kept) < len(prompts):
        log(f"{len(prompts) - len(kept)} of {len(prompts)} prompts are longer than {room} tokens and are left out")
    return kept
