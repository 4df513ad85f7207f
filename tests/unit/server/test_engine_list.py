from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.settings import ONLY, GatewaySettings
from stages.errors import InputError
from stages.settings import validate

ONE = {"name": "a", "url": "http://a:1/v1", "model": "m"}


def settings(*engines: dict[str, Any], **more: Any) -> GatewaySettings:
    return validate(GatewaySettings, {"engines": list(engines), **more}, "serve.yaml")


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    checkpoint = {"path": "../elsewhere/small", "sha256": "0", "tokenizer_sha256": "0"}
    serving = {
        "schema_version": 1, "served_model_name": "named", "target": checkpoint, "draft": checkpoint,
        "speculative_config": {"method": "draft_model", "num_speculative_tokens": 4}, "max_model_len": 8,
        "expected": {"acceptance_rate": 0.5, "mean_acceptance_length": 2.5, "speedup": 1.5},
    }  # fmt: skip
    (tmp_path / "serving.json").write_text(json.dumps(serving))
    return tmp_path


def test_one_engine_and_no_list_is_the_simple_default() -> None:
    (entry,) = GatewaySettings(engine_url="http://a:1", served_model_name="m", draft_name="d").entries()
    assert (entry.name, entry.url, entry.served_model, entry.draft) == (ONLY, "http://a:1", "m", "d")


@pytest.mark.parametrize(
    ("engines", "more", "message"),
    [([{**ONE, "modle": "x"}], {}, r"unknown key 'engines\.0\.modle': did you mean 'model'\?"),
     ([ONE, {**ONE, "url": "http://b"}], {}, "two engines have the name a"),
     ([ONE, {**ONE, "name": "b"}], {}, "two engines have the url http://a:1"),
     ([{"name": "a", "url": "http://a"}], {}, "needs 'model', or a 'pair'"),
     ([{**ONE, "url": "a:1"}], {}, "must be http://HOST:PORT"),
     ([{**ONE, "name": "a b"}], {}, r"engines\.0\.name"),
     ([{**ONE, "api_key": "k", "api_key_env": "K"}], {}, "give one of them"),
     ([ONE], {"engine_url": "http://b"}, "exclude each other")],
)  # fmt: skip
def test_what_is_wrong_in_a_list_is_said_in_one_line(engines: list[Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        settings(
            *({**engine, "api_key": "sk-secret"} if "api_key" not in engine else engine for engine in engines), **more
        )
    assert "\n" not in str(caught.value)
    assert "sk-secret" not in str(caught.value)


def test_a_pair_gives_names_and_figures_without_its_folders(pair: Path) -> None:
    given = settings(
        {"name": "a", "url": "http://a", "pair": str(pair)}, {**ONE, "name": "b", "pair": str(pair), "draft": "none"}
    )
    first, second = given.resolved({}).entries()
    assert (first.served_model, first.draft) == ("named", "small")
    assert (first.expected_acceptance_rate, first.expected_mean_acceptance_length) == (0.5, 2.5)
    assert first.expected_speedup == 1.5
    assert given.resolved({}).expected_speedups() == {("named", "small"): 1.5}
    assert (second.served_model, second.draft) == ("m", None), "what the entry says goes first"


def test_keys_come_from_the_environment_and_are_never_shown() -> None:
    given = settings({**ONE, "api_key_env": "ENGINE_KEY"})
    (entry,) = given.resolved({"ENGINE_KEY": "secret-1"}).entries()
    assert entry.api_key is not None
    assert entry.api_key.get_secret_value() == "secret-1"
    assert "secret-1" not in repr(entry)
    with pytest.raises(InputError, match="engine a: the environment has no ENGINE_KEY"):
        given.resolved({})


def test_resolved_settings_load_back_equal(pair: Path) -> None:
    resolved = settings(
        {"name": "a", "url": "http://a", "pair": str(pair)}, {**ONE, "draft": "none"} | {"name": "b"}
    ).resolved({})
    assert GatewaySettings.model_validate(resolved.model_dump(mode="json")) == resolved
