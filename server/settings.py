"""Settings of the gateway: one frozen object, resolved by the command and handed down."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_core import PydanticCustomError

from server.drift import DriftSettings
from server.sharing import CanarySettings
from stages.settings import Settings

MIB = 2**20


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
    max_in_flight: int = Field(default=1024, ge=1, description="further requests get 429")
    max_sequences: int = Field(default=128, ge=1, description="n times prompts of one request")
    body_timeout_s: float = Field(default=30.0, gt=0, description="for the whole request body to arrive")
    connect_timeout_s: float = Field(default=5.0, gt=0)
    engine_silence_s: float = Field(default=600.0, gt=0, description="longest wait for the engine's next byte")
    client_stall_s: float = Field(default=120.0, gt=0, description="longest wait for a client that does not read")
    ready_timeout_s: float = Field(default=2.0, gt=0, description="of the questions behind /ready and /v1/models")
    retry_after_s: int = Field(default=1, ge=1, description="told to clients with 429 and 503")
    usage_details: bool = Field(default=True, description="fill accepted_ and rejected_prediction_tokens in usage")
    acceptance_header: bool = Field(default=False, description="X-Understudy-Acceptance on answers in one piece")
    drain_s: float = Field(default=30.0, ge=0, description="time that running requests get to end after SIGTERM")
    expected_acceptance_rate: float | None = Field(default=None, ge=0, le=1)
    expected_mean_acceptance_length: float | None = Field(default=None, ge=1)
    expected_speedup: float | None = Field(default=None, gt=0, description="for the live page")
    drift: DriftSettings = Field(default=DriftSettings(), description="when a draft counts as stale")
    canary: CanarySettings | None = Field(default=None, description="a second draft's pool on trial; see reload")
    live_page: bool = Field(default=True, description="the page at / and its figures at /live.json")

    @field_validator("engine_url")
    @classmethod
    def _read_engine_url(cls, url: str | None) -> str | None:
        """Without the ``/v1`` that clients are given, and refused where it is no address."""
        if url is None:
            return None
        if not is_base_url(url):
            raise PydanticCustomError("engine_url", "must be http://HOST:PORT or https://HOST:PORT")
        return url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def expected_lengths_by_draft(self) -> dict[str, float]:
        """The expected mean acceptance length of every draft that has one."""
        length = self.expected_mean_acceptance_length
        return {self.draft_name: length} if self.draft_name is not None and length is not None else {}
