"""Settings of the gateway: one frozen object, resolved by the command and handed down."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from server.breaker import BreakerRule
from server.drift import DriftSettings, Expected
from server.engine_list import EngineEntry, check_names, is_base_url, read_base_url, resolve
from server.kinds import TAKEN
from server.pools import Pool, make_pools
from server.sharing import CanarySettings, check_canary
from stages.settings import Settings

KIB, MIB = 2**10, 2**20
ONLY = "engine"
"""What the engine is called where there is only one and no list."""


class GatewaySettings(Settings):
    """How the gateway listens, what it lets in, and how long it waits. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535, description="0 lets the system choose one")
    engine_url: str | None = Field(default=None, description="an engine that runs elsewhere; none is started then")
    engine_api_key: SecretStr | None = Field(default=None, description="sent to the engine instead of the client's key")
    served_model_name: str = Field(default="model", min_length=1, description="label `model` of every metric")
    draft_name: str | None = Field(default=None, description="label `draft`; None: no acceptance records are expected")
    max_body_bytes: int = Field(default=8 * MIB, ge=1024)
    max_event_bytes: int = Field(default=8 * MIB, ge=1024, description="longer stream events are relayed unread")
    max_header_bytes: int = Field(default=64 * KIB, ge=1024, description="request line and headers together")
    max_in_flight: int = Field(default=1024, ge=1, description="requests at the engine; further ones wait")
    max_reading: int = Field(default=1024, ge=1, description="request bodies read at once; further requests get 503")
    max_queued: int = Field(default=256, ge=0, description="requests that wait for a place; further ones get 503")
    queue_wait_s: float = Field(
        default=10.0, gt=0, description="longest wait for a place; requests that would wait longer get 503"
    )
    max_sequences: int = Field(default=128, ge=1, description="n times prompts of one request")
    strict: bool = Field(
        default=False, description="refuse unknown fields of request bodies instead of passing them on"
    )
    header_timeout_s: float = Field(default=30.0, gt=0, description="for a request's headers to arrive")
    body_timeout_s: float = Field(default=30.0, gt=0, description="for the whole request body to arrive")
    request_timeout_s: float | None = Field(default=None, gt=0, description="for a whole answer, queueing included")
    connect_timeout_s: float = Field(default=5.0, gt=0)
    engine_silence_s: float = Field(default=600.0, gt=0, description="longest wait for the engine's next byte")
    client_stall_s: float = Field(default=120.0, gt=0, description="longest wait for a client that does not read")
    ready_timeout_s: float = Field(default=2.0, gt=0, description="of the questions behind /ready and /v1/models")
    retry_after_s: int = Field(default=1, ge=1, description="told to clients with 429 and 503")
    usage_details: bool = Field(default=True, description="fill accepted_ and rejected_prediction_tokens in usage")
    acceptance_header: bool = Field(default=False, description="X-Understudy-Acceptance on answers in one piece")
    leave_s: float = Field(default=0.0, ge=0, description="after SIGTERM, /ready says no and requests are still taken")
    drain_s: float = Field(default=30.0, ge=0, description="time that running requests get to end after that")
    tenants_file: Path | None = Field(
        default=None, description="tenants, their keys and limits; without it no key is required"
    )
    tenants: SecretStr | None = Field(default=None, description="the text of such a file instead")
    prompt_bytes_per_token: float = Field(default=3.0, gt=0, description="estimate, for budgets of tokens per minute")
    access_log: bool = Field(
        default=True, description="one JSON line per request on standard error, without its prompt"
    )
    admin_host: str = Field(default="127.0.0.1", description="address of --admin-port")
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="port of /metrics, /health, /ready and /admin; None: /metrics is on the main one",
    )
    expected_acceptance_rate: float | None = Field(default=None, ge=0, le=1)
    expected_mean_acceptance_length: float | None = Field(default=None, ge=1)
    expected_speedup: float | None = Field(default=None, gt=0, description="for the live page")
    drift: DriftSettings = Field(default=DriftSettings(), description="when a draft counts as stale")
    canary: CanarySettings | None = Field(default=None, description="a second draft's pool on trial; see reload")
    prompt_kinds: tuple[str, ...] = Field(
        default=(), description="kinds of prompts that clients may name in X-Understudy-Kind, to compare canaries by"
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="where OpenTelemetry traces go, e.g. http://127.0.0.1:4318/v1/traces; needs the extra otel",
    )
    live_page: bool = Field(default=True, description="the page at / and its figures at /live.json")

    engines: tuple[EngineEntry, ...] = Field(default=(), description="engines that run elsewhere, instead of one")
    probe_every_s: float = Field(default=0.5, gt=0, description="how often each engine is asked whether it is well")
    probe_timeout_s: float = Field(default=1.0, gt=0, description="two silent answers in a row: the engine is away")
    stuck_s: float = Field(
        default=60.0, gt=0, description="an engine with requests that sends no byte for this long is stuck"
    )
    max_retries: int = Field(default=2, ge=0, description="other engines tried before the first byte of an answer")
    retry_within_s: float = Field(default=30.0, ge=0, description="an older request is not tried on another engine")
    breaker_failures: int = Field(default=5, ge=1, description="in a row, until an engine gets no more requests")
    breaker_open_s: float = Field(default=1.0, gt=0, description="how long; doubled after each failed trial")
    breaker_max_open_s: float = Field(default=30.0, gt=0)

    @field_validator("engine_url")
    @classmethod
    def _read_engine_url(cls, url: str | None) -> str | None:
        return None if url is None else read_base_url(url)

    @field_validator("engines")
    @classmethod
    def _check_engines(cls, engines: tuple[EngineEntry, ...]) -> tuple[EngineEntry, ...]:
        return check_names(engines)

    @model_validator(mode="after")
    def _check_one_way(self) -> GatewaySettings:
        if self.engines and self.engine_url is not None:
            raise PydanticCustomError("engines", "'engines' and 'engine_url' exclude each other; give one of them")
        return self

    @field_validator("prompt_kinds")
    @classmethod
    def _read_prompt_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        wrong = next((kind for kind in kinds if kind in TAKEN or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", kind)), None)
        if wrong is not None:
            message = f"must be words of letters, digits and _.-, and not {', '.join(sorted(TAKEN))}; given {wrong!r}"
            raise PydanticCustomError("prompt_kinds", message)
        return kinds

    @field_validator("otlp_endpoint")
    @classmethod
    def _read_otlp_endpoint(cls, url: str | None) -> str | None:
        if url is not None and not is_base_url(url):
            raise PydanticCustomError("otlp_endpoint", "must be like http://HOST:4318/v1/traces")
        return url

    @model_validator(mode="after")
    def _check_breaker(self) -> GatewaySettings:
        if self.breaker_open_s > self.breaker_max_open_s:
            raise PydanticCustomError("breaker", "breaker_open_s is longer than breaker_max_open_s; raise that")
        return self

    @model_validator(mode="after")
    def _check_tenants(self) -> GatewaySettings:
        if self.tenants_file is not None and self.tenants is not None:
            raise PydanticCustomError("tenants", "give the tenants as a file or as text, not both")
        return self

    @property
    def breaker_rule(self) -> BreakerRule:
        """When an engine gets no more requests."""
        return BreakerRule(self.breaker_failures, self.breaker_open_s, self.breaker_max_open_s)

    def resolved(self, environment: Mapping[str, str]) -> GatewaySettings:
        """With what pairs and the environment say of the engines filled in."""
        return self.model_copy(update={"engines": tuple(resolve(entry, environment) for entry in self.engines)})

    def pools(self) -> tuple[Pool, ...]:
        """The pools of the engines, which need not run yet."""
        listed = [(entry.name, entry.served_model, entry.draft) for entry in self.engines]
        return make_pools(listed or [(ONLY, self.served_model_name, self.draft_name)])

    def checked(self) -> GatewaySettings:
        """The same, once pairs have been read, if what it says of its engines' drafts can be.

        Raises:
            InputError: the canary is nobody's draft.
        """
        check_canary(self.canary, {pool.name: pool.draft for pool in self.pools()})
        return self

    def entries(self) -> tuple[EngineEntry, ...]:
        """All engines: those of the list, or the one at ``engine_url``."""
        if self.engines:
            return self.engines
        assert self.engine_url is not None
        fields: dict[str, Any] = {
            "name": ONLY, "url": self.engine_url, "model": self.served_model_name, "draft": self.draft_name,
            "expected_acceptance_rate": self.expected_acceptance_rate,
            "expected_mean_acceptance_length": self.expected_mean_acceptance_length,
            "expected_speedup": self.expected_speedup,
        }  # fmt: skip
        return (EngineEntry.model_construct(**fields),)

    def expected(self) -> dict[tuple[str, str], Expected]:
        """What is expected of drafts, by model and draft; the first that an engine states counts."""
        found: dict[tuple[str, str], Expected] = {}
        for entry in self.entries():
            length, rate = entry.expected_mean_acceptance_length, entry.expected_acceptance_rate
            if entry.draft is not None and length is not None:
                found.setdefault((entry.served_model, entry.draft), Expected(length, rate))
        return found

    def expected_speedups(self) -> dict[tuple[str, str], float]:
        """Likewise of drafts' speed-up, which only people look at."""
        found: dict[tuple[str, str], float] = {}
        for entry in self.entries():
            if entry.draft is not None and entry.expected_speedup is not None:
                found.setdefault((entry.served_model, entry.draft), entry.expected_speedup)
        return found
