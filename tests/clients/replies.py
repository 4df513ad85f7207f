"""What vLLM 0.32 answers, byte for byte in form: every field that it writes, in its order, and streams without those it leaves out.

`test_replies.py` reads all of them with vLLM's own classes and compares what those write.
"""

from __future__ import annotations

import json
from typing import Any

MODEL = "reference"
TEXT = ["Oslo", " is", " the", " capital", " of", " Norway", "."]
ARGUMENTS = ['{"city": "', "Oslo", '"}']
STRUCTURED = ['{"city"', ': "Oslo"', ', "capital"', ": true}"]
CALL_ID = "chatcmpl-tool-1f0c2a7b9d3e4f5a8b6c7d8e9f0a1b2c"
CREATED = 1_790_000_000
PROMPT_TOKENS = 14
RECORD = {
    "mean_acceptance_length": 2.2, "draft_acceptance_rate": 0.4, "acceptance_histogram": [2, 1, 1, 1], "num_spec_steps": 5,
    "num_accepted_draft_tokens": 6, "num_draft_tokens": 15, "num_spec_tokens": 3,
}  # fmt: skip
TIMES = ("time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second")
STEPS = ("per_step_accepted", "per_step_drafted")


def dump(value: object) -> bytes:
    """As vLLM writes JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _usage(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + tokens, "completion_tokens": tokens}


def _whole(kind: str, choice: dict[str, Any], tokens: int, **more: Any) -> dict[str, Any]:
    details = {"prompt_tokens_details": None, "completion_tokens_details": None}
    metrics = {**dict.fromkeys(TIMES), "speculative_decoding": {**RECORD, **dict.fromkeys(STEPS)}}
    return {
        "id": "chatcmpl-0123456789abcdef" if kind == "chat.completion" else "cmpl-0123456789abcdef",
        "object": kind, "created": CREATED, "model": MODEL, "choices": [choice], "service_tier": None,
        "system_fingerprint": None, "usage": {**_usage(tokens), **details}, **more, "kv_transfer_params": None,
        "ec_transfer_params": None, "metrics": metrics,
    }  # fmt: skip


def is_forced(request: dict[str, Any]) -> bool:
    """Whether a tool must be called; vLLM calls none by itself unless it is started with a parser."""
    choice = request.get("tool_choice")
    return bool(request.get("tools")) and (choice == "required" or isinstance(choice, dict))


def _finish(request: dict[str, Any]) -> str:
    return "tool_calls" if request.get("tool_choice") == "required" else "stop"


def _pieces(request: dict[str, Any]) -> list[str]:
    """The tokens of the answer; at least as many as were asked for with ``ignore_eos``."""
    wanted = request.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return STRUCTURED
    limit = request.get("max_completion_tokens") or request.get("max_tokens") or len(TEXT)
    return (TEXT * (1 + limit // len(TEXT)))[:limit] if request.get("ignore_eos") else TEXT[:limit]


def chat(request: dict[str, Any]) -> dict[str, Any]:
    """A chat answer in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(_pieces(request))}
    message |= dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
    finish, tokens = "stop", len(_pieces(request))
    if is_forced(request):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": "".join(ARGUMENTS)}
        message |= {"content": "", "tool_calls": [{"id": CALL_ID, "type": "function", "function": function}]}
        finish, tokens = _finish(request), len(ARGUMENTS)
    choice = {"index": 0, "message": {**message, "reasoning": None}, "logprobs": None, "finish_reason": finish}
    choice |= dict.fromkeys(("stop_reason", "token_ids", "routed_experts"))
    more = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text"))
    return _whole("chat.completion", choice, tokens, **more)


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """A completion in one piece."""
    choice = {"index": 0, "text": "".join(_pieces(request)), "logprobs": None, "finish_reason": "stop"}
    choice |= dict.fromkeys(("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts"))
    return _whole("text_completion", choice, len(_pieces(request)))


def _deltas(request: dict[str, Any]) -> list[dict[str, Any]]:
    if not is_forced(request):
        return [{"content": piece} for piece in _pieces(request)]
    name = request["tools"][0]["function"]["name"]
    opening = {"id": CALL_ID, "type": "function", "index": 0, "function": {"name": name, "arguments": ARGUMENTS[0]}}
    rest = [{"index": 0, "function": {"arguments": piece}} for piece in ARGUMENTS[1:]]
    return [{"tool_calls": [call]} for call in [opening, *rest]]


def chat_stream(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a chat stream."""
    head = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": CREATED, "model": MODEL}
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    chunks = [{**head, "choices": [first], "prompt_token_ids": None, "prompt_text": None}]
    deltas = _deltas(request)
    for number, delta in enumerate(deltas, 1):
        choice: dict[str, Any] = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
            "token_ids": None,
        }
        if number == len(deltas):
            finish = _finish(request) if is_forced(request) else "stop"
            choice = {**choice, "finish_reason": finish, "stop_reason": None, "token_ids": None}
            choice["token_ids"] = choice.pop("token_ids")  # behind the reason, as the class has it
        chunks.append({**head, "choices": [choice]})
    return chunks + _last(request, head, len(deltas))


def completion_stream(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream of completions."""
    head = {"id": "cmpl-0123456789abcdef", "object": "text_completion", "created": CREATED, "model": MODEL}
    pieces = _pieces(request)
    chunks = []
    for number, piece in enumerate(pieces, 1):
        choice = {"index": 0, "text": piece, "logprobs": None}
        choice["finish_reason"] = "stop" if number == len(pieces) else None
        choice |= dict.fromkeys(("stop_reason", "prompt_token_ids", "token_ids"))
        chunks.append({**head, "choices": [choice]})
    return chunks + _last(request, head, len(pieces))


def _last(request: dict[str, Any], head: dict[str, Any], tokens: int) -> list[dict[str, Any]]:
    """The chunk with usage and acceptance, for who asked for it."""
    if not (request.get("stream_options") or {}).get("include_usage"):
        return []
    return [{**head, "choices": [], "usage": _usage(tokens), "metrics": {"speculative_decoding": RECORD}}]


def models() -> dict[str, Any]:
    """The list of models."""
    permission = {
        "id": "modelperm-0123456789abcdef", "object": "model_permission", "created": CREATED,
        "allow_create_engine": False, "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False,
        "allow_view": True, "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
    }  # fmt: skip
    card = {
        "id": MODEL, "object": "model", "created": CREATED, "owned_by": "vllm", "root": "/models/reference", "parent": None,
        "max_model_len": 1024, "permission": [permission],
    }  # fmt: skip
    return {"object": "list", "data": [card]}


def error(status: int, message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def no_such_model(model: str) -> dict[str, Any]:
    """What vLLM says of a model that it does not serve."""
    return error(404, f"The model `{model}` does not exist. Valid aliases: {MODEL}.", "NotFoundError", "model")
