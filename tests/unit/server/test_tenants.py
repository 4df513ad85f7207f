from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.tenants import Tenants, hash_key, make_key, parse_tenants, read_tenants
from stages.errors import InputError

HASH = hash_key("sk-one")


def file_of(*tenants: dict[str, object]) -> str:
    return json.dumps({"tenants": tenants})


def test_a_file_is_read_and_written_again_the_same() -> None:
    full = {
        "name": "shop", "keys": [HASH], "requests_per_minute": 60, "tokens_per_minute": 9000, "concurrent_requests": 4,
        "default_max_tokens": 256, "models": ["m"],
    }  # fmt: skip
    read = parse_tenants(file_of(full, {"name": "lab", "keys": [hash_key("sk-two")]}), "f")
    assert Tenants.model_validate(read.model_dump()) == read
    assert read.tenants[0].may_use("m")
    assert not read.tenants[0].may_use("other")
    assert read.tenants[1].may_use("anything")


def test_keys_are_new_each_time_and_known_by_their_hash() -> None:
    keys = {make_key() for _ in range(50)}
    assert len({hash_key(key) for key in keys}) == 50
    assert all(len(key) > 40 for key in keys)


@pytest.mark.parametrize(
    ("text", "said"),
    [(file_of(), "at least 1 item"), ("tenants: [", "line"), ("[" * 400, "not valid"),
     ("2001-99-99", "not valid"), ("[]", "must be a mapping"),
     (file_of({"name": "a", "keys": [HASH], "request_per_minute": 3}), "did you mean 'requests_per_minute'"),
     (file_of({"name": "a", "keys": []}), "at least 1 item"), (file_of({"name": "a"}), "'tenants.0.keys'"),
     (file_of({"name": "a b", "keys": [HASH]}), "tenants.0.name"),
     (file_of({"name": "unknown", "keys": [HASH]}), "stands for those without a key"),
     (file_of({"name": "a", "keys": [HASH]}, {"name": "b", "keys": [HASH]}), "a key of 'b' is a key of 'a' already"),
     (file_of({"name": "a", "keys": [HASH]}, {"name": "a", "keys": [hash_key("x")]}), "two tenants are named 'a'"),
     (file_of({"name": "a", "keys": [HASH], "tokens_per_minute": 0}), "given 0")],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_tenants(text, "tenants.yaml")
    assert said in str(caught.value)
    assert str(caught.value).startswith("tenants.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [file_of({"name": "a", "keys": ["sk-secret"]}), file_of({"name": "a", "keys": "sk-secret"}), '{"tenants": "sk-secret"}',
     '{"tenants": {"a": "sk-secret"}}', "tenants: [{name: a, keys: [sk-secret\n}", "sk-secret"],
)  # fmt: skip
def test_a_key_in_the_file_is_never_repeated(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_tenants(text, "tenants.yaml")
    assert "sk-secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_tenants(tmp_path / "none.yaml")
