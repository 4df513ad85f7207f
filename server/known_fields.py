"""Strict mode: a field that the engine does not know is refused instead of passed on to be ignored.

The names are those of vLLM 0.32's request schemas.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from server.errors import Refusal


def _words(text: str) -> list[str]:
    return text.split()


EVERYWHERE = _words("""
cache_salt model priority request_id user
""")
SAMPLING = _words("""
add_special_tokens allowed_token_ids bad_words ec_transfer_params echo frequency_penalty ignore_eos
include_stop_str_in_output kv_transfer_params length_penalty logit_bias logprob_token_ids logprobs max_tokens min_p
min_tokens mm_payload n presence_penalty prompt_logprobs repetition_detection repetition_penalty response_format
return_mm_kwargs return_token_ids return_token_offsets return_tokens_as_token_ids routed_experts_prompt_start seed
session_id skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval
stream_options structured_outputs temperature thinking_token_budget top_k top_p truncate_prompt_tokens
truncation_side use_beam_search vllm_xargs watermarking
""")
"""Of both routes that generate."""
BOOKKEEPING = ["metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store"]
"""Of OpenAI's chat route; they say nothing about the answer, so it is no harm that the engine ignores them."""
CHAT = _words("""
add_generation_prompt chat_template chat_template_kwargs continue_final_message documents include_reasoning
max_completion_tokens media_io_kwargs messages mm_processor_kwargs parallel_tool_calls reasoning_effort
return_prompt_text tool_choice tools top_logprobs
""")
COMPLETIONS = _words("""
prompt prompt_embeds suffix
""")
EMBEDDINGS = _words("""
add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message dimensions
embed_dtype encoding_format endianness input media_io_kwargs messages mm_processor_kwargs padding
truncate_prompt_tokens truncation_side use_activation
""")
RESPONSES = _words("""
background chat_template_kwargs ec_transfer_params enable_response_messages frequency_penalty ignore_eos include
include_reasoning include_stop_str_in_output input instructions kv_transfer_params logit_bias max_output_tokens
max_tool_calls media_io_kwargs metadata min_p mm_payload mm_processor_kwargs parallel_tool_calls presence_penalty
previous_input_messages previous_response_id prompt prompt_cache_key reasoning repetition_penalty return_mm_kwargs
seed service_tier session_id skip_special_tokens stop stop_token_ids store stream structured_outputs temperature
text tool_choice tools top_k top_logprobs top_p truncation vllm_xargs watermarking
""")

KNOWN = {
    "chat": frozenset([*EVERYWHERE, *SAMPLING, *BOOKKEEPING, *CHAT]),
    "completions": frozenset([*EVERYWHERE, *SAMPLING, *COMPLETIONS]),
    "embeddings": frozenset([*EVERYWHERE, *EMBEDDINGS]),
    "responses": frozenset([*EVERYWHERE, *RESPONSES]),
}
"""Top-level fields by the name of the route."""


def check_fields(route: str, given: Iterable[str]) -> None:
    """Checks the names of a body's top-level fields.

    Raises:
        Refusal: 400 with the nearest name that is known.
    """
    known = KNOWN[route]
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        return
    near = difflib.get_close_matches(unknown[:100], known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "leave it out"
    message = f"unknown field {unknown[:100]!r}: {hint} (this gateway is strict)"
    raise Refusal(400, message, "unknown_field", unknown[:100])
