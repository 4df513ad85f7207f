from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.app import ROUTES
from server.declaring import OUTPUT_FIELDS, declared_tokens
from server.errors import Refusal
from server.inbound import Inbound, Route, check
from server.known_fields import KNOWN

CHAT = Route("/v1/chat/completions", "chat", generates=True)
EMBEDDINGS = Route("/v1/embeddings", "embeddings", generates=False)
RESPONSES = Route("/v1/responses", "responses", generates=False, unrecorded=True)


def checked(payload: dict[str, Any], route: Route = CHAT) -> tuple[Inbound, dict[str, Any]]:
    inbound = check(route, json.dumps(payload).encode(), 8)
    return inbound, json.loads(inbound.body)


def refused(body: bytes | dict[str, Any], route: Route = CHAT) -> Refusal:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Refusal) as caught:
        check(route, raw, 8)
    assert caught.value.status == 400
    return caught.value


def test_a_stream_is_asked_for_its_usage_chunk() -> None:
    inbound, sent = checked({"stream": True})
    assert sent["stream_options"] == {"include_usage": True}
    assert not inbound.wants_usage


def test_a_client_that_asks_itself_is_left_alone() -> None:
    payload = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    inbound, sent = checked(payload)
    assert (inbound.wants_usage, sent) == (True, payload)


def test_asking_for_usage_does_not_switch_on_what_hangs_on_it() -> None:
    _, sent = checked({"stream": True, "stream_options": {"continuous_usage_stats": True}})
    assert sent["stream_options"] == {"include_usage": True}


def test_answers_in_one_piece_are_left_alone() -> None:
    assert checked({"stream": False, "prompt": "x"})[1] == {"stream": False, "prompt": "x"}


def test_priority_is_not_the_clients_to_choose() -> None:
    assert checked({"priority": -5, "prompt": "x"})[1] == {"prompt": "x"}
    assert checked({"priority": -5, "input": "x"}, EMBEDDINGS)[1] == {"input": "x"}


@pytest.mark.parametrize(
    ("payload", "sequences"),
    [({}, 1), ({"n": 3}, 3), ({"n": 2.0}, 2), ({"n": None}, 1), ({"prompt": "a"}, 1), ({"prompt": [1, 2, 3]}, 1),
     ({"prompt": ["a", "b"]}, 2), ({"prompt": [[1], [2]], "n": 4}, 8), ({"prompt": []}, 1)],
)  # fmt: skip
def test_sequences_are_n_times_prompts(payload: dict[str, Any], sequences: int) -> None:
    assert checked(payload)[0].num_sequences == sequences


@pytest.mark.parametrize(
    ("payload", "param"),
    [({"n": 0}, "n"), ({"n": 9}, "n"), ({"n": 5, "prompt": ["a", "b"]}, "n"), ({"n": "1"}, "n"), ({"n": True}, "n"),
     ({"n": 1.5}, "n"), ({"max_tokens": "4000"}, "max_tokens"), ({"max_tokens": 1.5}, "max_tokens"),
     ({"max_tokens": 1, "max_completion_tokens": "4000"}, "max_completion_tokens"), ({"max_tokens": True}, "max_tokens"),
     ({"stream": "yes"}, "stream"), ({"stream": 1}, "stream"), ({"model": 3}, "model"),
     ({"stream": True, "stream_options": []}, "stream_options"), ({"stream_options": {}}, "stream_options"),
     ({"stream": True, "stream_options": {"include_usage": 1}}, "include_usage")],
)  # fmt: skip
def test_wrong_types_are_named(payload: dict[str, Any], param: str) -> None:
    assert refused(payload).param == param


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_limits_of_the_output_are_whole_numbers_for_the_engine_and_for_the_budget(route: Route) -> None:
    """vLLM takes ``"4000"`` and ``4000.0`` for 4000, so neither may pass for no limit here."""
    for key in OUTPUT_FIELDS[route.name]:
        inbound = check(route, json.dumps({key: 4000.0}).encode(), 8)
        assert f'"{key}":4000}}' in inbound.body.decode()
        assert sum(declared_tokens(route.name, inbound.payload, 1, 3.0)) == 4000
        with pytest.raises(Refusal) as caught:
            check(route, json.dumps({key: "4000"}).encode(), 8)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "wrong_type", key)
        assert caught.value.message == f"'{key}' must be a whole number, given a string"
        for kept in (None, -1, 0, 7):
            assert json.loads(check(route, json.dumps({key: kept}).encode(), 8).body) == {key: kept}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b'{"a": 1e999999}', b"[" * 100_000,
     b'{"a":' * 100_000, b'{"a": "\\ud800"}', b'{"a": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    assert refused(body).code == "malformed_json"


def test_messages_never_hold_the_prompt() -> None:
    assert "secret" not in refused({"stream": "secret", "prompt": "secret"}).message
    assert "secret" not in refused(b'{"prompt": "secret" "x"}').message


@given(st.binary(max_size=300))
def test_no_body_makes_the_gateway_fail(body: bytes) -> None:
    with contextlib.suppress(Refusal):
        check(CHAT, body, 8)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = (
    PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.sampled_from(["text", "role", "type"]), PLAIN, max_size=3)
)
NAMES = st.sampled_from(sorted(frozenset.union(*KNOWN.values()))) | st.text(max_size=5)


@given(st.sampled_from(ROUTES), st.dictionaries(NAMES, VALUES, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_whatever_a_body_says_it_passes_or_is_refused_with_400(
    route: Route, payload: dict[str, Any], strict: bool, limited: bool
) -> None:
    try:
        inbound = check(route, json.dumps(payload).encode(), 8, True, strict, 7 if limited else None)
    except Refusal as refusal:
        assert (refusal.status, refusal.headers, refusal.retry_after_s) == (400, {}, None)  # noqa: PT017
        return
    sent, ours = json.loads(inbound.body), {"priority", "stream_options", *OUTPUT_FIELDS[route.name]}
    assert {key: sent[key] for key in sent.keys() - ours} == {key: payload[key] for key in payload.keys() - ours}
    assert "priority" not in sent
    assert sum(declared_tokens(route.name, inbound.payload, inbound.num_sequences, 3.0)) >= 0


@pytest.mark.parametrize(
    ("route", "field", "near"),
    [(CHAT, "temprature", "temperature"), (CHAT, "max_token", "max_tokens"), (EMBEDDINGS, "inputs", "input")],
)
def test_strict_mode_names_the_nearest_field_that_is_known(route: Route, field: str, near: str) -> None:
    body = json.dumps({field: 1, "model": "m"}).encode()
    with pytest.raises(Refusal, match=f"did you mean '{near}'") as caught:
        check(route, body, 8, strict=True)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unknown_field", field)
    assert json.loads(check(route, body, 8).body)[field] == 1


def test_strict_mode_lets_through_what_clients_send() -> None:
    asked = {"model": "m", "messages": [], "stream": True, "stream_options": {"include_usage": True}, "n": 1, "tools": [],
             "response_format": {}, "max_completion_tokens": 3, "user": "u", "store": False, "min_p": 0.1, "top_k": 3}  # fmt: skip
    check(CHAT, json.dumps(asked).encode(), 8, strict=True)


def test_a_tenants_limit_is_written_into_requests_that_name_none() -> None:
    for body, sent in (({}, 7), ({"max_completion_tokens": 3}, 3)):
        inbound = check(CHAT, json.dumps(body).encode(), 8, default_max_tokens=7)
        assert json.loads(inbound.body)["max_completion_tokens"] == sent


def test_an_inbound_request_does_not_show_its_prompt() -> None:
    assert "payload" not in repr(check(CHAT, b'{"prompt": "secret"}', 8))


def test_an_answer_that_nobody_could_fetch_is_refused() -> None:
    refusal = refused({"input": "x", "background": True}, RESPONSES)
    assert (refusal.param, refusal.code) == ("background", "unsupported_parameter")
    checked({"input": "x", "background": False}, RESPONSES)


def test_what_gives_other_requests_wrong_log_probabilities_is_refused() -> None:
    refusal = refused({"logprobs": 1, "logprob_token_ids": [5, 6]})
    assert (refusal.param, refusal.code) == ("logprob_token_ids", "unsupported_parameter")
    checked({"logprobs": True, "logprob_token_ids": None})
    checked({"logprob_token_ids": [5]}, EMBEDDINGS)
