"""Engines as the settings name them, and what is filled in for them from pairs and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.pair import draft_name_of, read_serving
from server.pools import NO_DRAFT
from stages.errors import InputError
from stages.settings import Settings

WORD = r"^[!-~]+$"
"""Printable ASCII without spaces: it goes into headers and labels."""


def is_base_url(url: str) -> bool:
    """True for the address of an HTTP server: scheme, host, perhaps port and path, and nothing else."""
    try:
        parts = urlsplit(url)
        usable_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    whole = not (parts.query or parts.fragment or parts.username or any(map(str.isspace, url)))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and usable_port and whole


def read_base_url(url: str) -> str:
    """The address without the ``/v1`` that clients are given, and refused where it is none."""
    if not is_base_url(url):
        raise PydanticCustomError("engine_url", "must be http://HOST:PORT or https://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


class EngineEntry(Settings):
    """One engine that runs elsewhere."""

    name: str = Field(pattern=WORD, max_length=80, description="what metrics and log lines call it")
    url: str
    model: str | None = Field(
        default=None, pattern=WORD, description="name it serves its model by; needed without pair"
    )
    target: str | None = Field(default=None, description="label of the target, for people")
    draft: str | None = Field(default=None, pattern=WORD, description="label of its draft, or none")
    pair: Path | None = Field(default=None, description="its serving.json: names and expected figures are read from it")
    api_key: SecretStr | None = Field(default=None, description="sent to it; None: the gateway's engine_api_key")
    api_key_env: str | None = Field(default=None, description="the environment's variable that holds the key")
    max_in_flight: int | None = Field(default=None, ge=1, description="further requests go to other engines or get 503")
    expected_acceptance_rate: float | None = Field(default=None, ge=0, le=1)
    expected_mean_acceptance_length: float | None = Field(default=None, ge=1)
    expected_speedup: float | None = Field(default=None, gt=0, description="for the live page")

    @field_validator("url")
    @classmethod
    def _read_url(cls, url: str) -> str:
        return read_base_url(url)

    @field_validator("draft")
    @classmethod
    def _read_draft(cls, draft: str | None) -> str | None:
        return None if draft == NO_DRAFT else draft

    @model_validator(mode="after")
    def _check(self) -> EngineEntry:
        if self.model is None and self.pair is None:
            raise PydanticCustomError("model", "needs 'model', or a 'pair' to read it from")
        if self.api_key is not None and self.api_key_env is not None:
            raise PydanticCustomError("api_key", "has both 'api_key' and 'api_key_env'; give one of them")
        return self

    @property
    def served_model(self) -> str:
        """The name it serves its model by, once its pair has been read."""
        assert self.model is not None
        return self.model


def check_names(entries: tuple[EngineEntry, ...]) -> tuple[EngineEntry, ...]:
    """Refuses two engines of the same name or address."""
    for what in ("name", "url"):
        values = [getattr(entry, what) for entry in entries]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise PydanticCustomError("engines", f"two engines have the {what} {twice}; each needs its own")
    return entries


def resolve(entry: EngineEntry, environment: Mapping[str, str]) -> EngineEntry:
    """The entry with its pair's names and figures and its key filled in; what the entry says itself goes first.

    Raises:
        InputError: the pair cannot be read, or the environment has no such variable.
    """
    found: dict[str, Any] = {"api_key": _key(entry, environment), "api_key_env": None}
    if entry.pair is not None:
        serving = read_serving(entry.pair)
        expected = serving.expected
        found |= {"model": entry.model or serving.served_model_name, "pair": None}
        if "draft" not in entry.model_fields_set:
            found |= {"draft": draft_name_of(entry.pair, serving)}
        for key in ("acceptance_rate", "mean_acceptance_length", "speedup"):
            stated = getattr(entry, f"expected_{key}")
            found[f"expected_{key}"] = stated if stated is not None or expected is None else getattr(expected, key)
    return EngineEntry.model_validate({**entry.model_dump(), **found})


def _key(entry: EngineEntry, environment: Mapping[str, str]) -> SecretStr | None:
    if entry.api_key_env is None:
        return entry.api_key
    key = environment.get(entry.api_key_env)
    if not key:
        raise InputError(f"engine {entry.name}: the environment has no {entry.api_key_env}; set it or give 'api_key'")
    return SecretStr(key)
