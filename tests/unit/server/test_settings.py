from __future__ import annotations

import pytest

from server.settings import GatewaySettings
from stages.errors import InputError
from stages.settings import validate


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8001", "http://127.0.0.1:8001"),
        ("http://engine:8001/v1/", "http://engine:8001"),
        ("https://host/vllm/v1", "https://host/vllm"),
        ("http://[::1]:80/", "http://[::1]:80"),
    ],
)
def test_addresses_of_engines_are_kept_without_what_clients_add(given: str, kept: str) -> None:
    settings = GatewaySettings(engine_url=given)
    assert settings.engine_url == kept
    assert GatewaySettings.model_validate(settings.model_dump()) == settings


@pytest.mark.parametrize(
    "url",
    ["", "engine:8001", "ftp://engine", "http://", "http://engine:port", "http://engine:0", "http://engine:70000",
     "http://[::1", "http://my engine", "http://me:secret@engine", "http://engine?x=1", "http://engine#x"],
)  # fmt: skip
def test_what_is_no_address_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(InputError, match="'engine_url': must be http://HOST:PORT or https://HOST:PORT") as caught:
        validate(GatewaySettings, {"engine_url": url}, "serve")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"otlp_endpoint": "127.0.0.1:4318"}, "otlp_endpoint"),
        ({"prompt_kinds": ["code", "all"]}, "given 'all'"),
        ({"prompt_kinds": ["a b"]}, "given 'a b'"),
        ({"breaker_open_s": 60}, "longer than breaker_max_open_s"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate(GatewaySettings, values, "here")
