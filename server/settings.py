"""Settings of the gateway: one frozen object, resolved by the command and handed down."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_core import PydanticCustomError

from stages.settings import Settings

KIB, MIB = 2**10, 2**20


def is_base_url(url: str) -> bool:
    """True for the address of an HTTP server: scheme, host, perhaps port and path, and nothing else."""
    try:
        parts = urlsplit(url)
        usable_port = parts.port is None or parts.port > 0
    except ValueError:
        return False
    whole = not (parts.query or parts.fragment or parts.username or any(map(str.isspace, url)))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and usable_port and whole


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
        default=10.0, gt=0, description="longest wait for a place; who would wait longer gets 503"
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
    leave_s: float = Field(default=0.0, ge=0, description="after SIGTERM, /ready says no and requests are still taken")
    drain_s: float = Field(default=30.0, ge=0, description="time that running requests get to end after that")
    tenants_file: Path | None = Field(
        default=None, description="tenants, their keys and limits; without it all may come"
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

    @field_validator("engine_url")
    @classmethod
    def _read_engine_url(cls, url: str | None) -> str | None:
        """Without the ``/v1`` that clients are given, and refused where it is no address."""
        if url is None:
            return None
        if not is_base_url(url):
            raise PydanticCustomError("engine_url", "must be http://HOST:PORT or https://HOST:PORT")
        return url.rstrip("/").removesuffix("/v1").rstrip("/")

    @model_validator(mode="after")
    def _check_tenants(self) -> GatewaySettings:
        if self.tenants_file is not None and self.tenants is not None:
            raise PydanticCustomError("tenants", "give the tenants as a file or as text, not both")
        return self
