"""What is asked, by whom, how often, and what counts as good enough: one file for all of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from stages.errors import InputError
from stages.settings import Settings

PROMPTS = Path(__file__).parent / "prompts.jsonl"
TICK_S = 1.0
"""How often locust asks a shape for the number of users."""


class Length(Settings):
    """How long prompts and answers are, in one share of the requests; kinds that have no such prompts have no part in it.

    Attributes:
        max_tokens: of the answer.
        min_chars: of the prompt's text; ``max_chars`` None is no limit.
    """

    weight: float = Field(default=1.0, gt=0)
    max_tokens: int = Field(default=64, ge=1)
    min_chars: int = Field(default=0, ge=0)
    max_chars: int | None = Field(default=None, ge=1)


class Tenant(Settings):
    """A client of the server; its API key stands in an environment variable or a file, never in the settings."""

    name: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0)
    key_env: str | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Tenant:
        if self.key_env and self.key_file:
            raise ValueError("give key_env or key_file, not both")
        return self

    def key(self, environ: Mapping[str, str]) -> str | None:
        """The API key; None for a server that asks for none.

        Raises:
            InputError: the variable is not set, or the file cannot be read.
        """
        if self.key_env:
            if self.key_env not in environ:
                raise InputError(f"tenant {self.name!r}: {self.key_env} is not set; put the tenant's API key into it")
            return environ[self.key_env]
        if self.key_file is None:
            return None
        try:
            return self.key_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise InputError(f"tenant {self.name!r}: {self.key_file} cannot be read ({error.strerror})") from error


class Objective(Settings):
    """What a request must keep to be good: seconds to the first token, and per output token after it.

    Attributes:
        share: of requests that must be good; under it the objective is broken.
    """

    ttft_s: float = Field(default=1.0, gt=0)
    tpot_s: float = Field(default=0.1, gt=0)
    share: float = Field(default=0.95, gt=0, le=1)


class Shape(Settings):
    """Load over time: users at a time in a closed loop, arrivals per second in an open one.

    Attributes:
        kind: ``steady`` stays at ``level``; ``ramp`` goes from it to ``to``; ``burst`` jumps to ``to`` for ``burst_s`` at the end
            of every ``every_s``; ``step`` adds ``by`` every ``every_s`` until ``to``, or until the objective breaks.
        duration_s: of steady, ramp and burst; steps last as long as they take.

    A closed loop has whole users, at least one, and their number changes once a second at most.
    """

    kind: Literal["steady", "ramp", "burst", "step"] = "steady"
    level: float = Field(default=1.0, gt=0)
    to: float | None = Field(default=None, gt=0)
    by: float = Field(default=1.0, gt=0)
    every_s: float = Field(default=10.0, gt=0)
    burst_s: float = Field(default=2.0, gt=0)
    duration_s: float = Field(default=30.0, gt=0, le=86400)

    @model_validator(mode="after")
    def _complete(self) -> Shape:
        if self.kind != "steady" and self.to is None:
            raise ValueError(f"shape {self.kind!r} needs 'to', the level it goes to")
        if self.kind == "step" and (self.to or 0) < self.level:
            raise ValueError(f"shape 'step' goes up: 'to' must be at least {self.level:g}, given {self.to:g}")
        if self.kind == "burst" and self.burst_s >= self.every_s:
            raise ValueError(f"burst_s must be less than every_s ({self.every_s:g}), given {self.burst_s:g}")
        return self

    @property
    def shortest_s(self) -> float:
        """How long the shorter of a burst's two levels lasts."""
        return min(self.burst_s, self.every_s - self.burst_s)


class LoadSettings(Settings):
    """A load test.

    Attributes:
        model: what requests name; asked of the server when not given.
        prompts: JSONL, one object a line with ``messages`` (chat) or ``prompt`` (completions) and a ``kind``; a few general ones
            come with the package.
        kinds: weight of each kind of prompt; all prompts alike when empty.
        stream: share of requests that are streamed.
        loop, shape: what ``locust -f loadtests/locustfile.py`` carries out; ``understudy loadtest`` too, if ``shape`` is set.
        users: closed loops that ``understudy loadtest`` runs, by users at a time.
        rates: open loops that it runs, by arrivals per second.
        turns: times that each server is asked under each condition, servers taking turns.
        requests_per_turn: of a closed loop, rounded up to as many for each user.
        requests_per_user: of a closed loop, at least: with one each, a turn would be a burst and its ending, not so many users.
        turn_s: length of an open loop's turn; what has arrived by then is waited for.
        think_s: mean pause of a user between requests, exponential; closed loops only.
        max_in_flight: connections; in an open loop what arrives beyond waits, and its time counts.
        max_requests: bound on the requests of one turn.
    """

    seed: int = Field(default=0, ge=0)
    model: str | None = None
    prompts: Path = PROMPTS
    kinds: dict[str, float] = Field(default_factory=dict)
    lengths: tuple[Length, ...] = Field(default=(Length(),), min_length=1)
    tenants: tuple[Tenant, ...] = Field(default=(Tenant(name="default"),), min_length=1)
    stream: float = Field(default=1.0, ge=0, le=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    objective: Objective = Objective()
    loop: Literal["closed", "open"] = "closed"
    shape: Shape | None = None
    users: tuple[int, ...] = (1, 2, 4, 8, 16)
    rates: tuple[float, ...] = (0.5, 1.0, 2.0)
    turns: int = Field(default=3, ge=1, le=100)
    requests_per_turn: int = Field(default=16, ge=1)
    requests_per_user: int = Field(default=6, ge=1)
    turn_s: float = Field(default=15.0, gt=0, le=3600)
    think_s: float = Field(default=0.0, ge=0)
    timeout_s: float = Field(default=120.0, gt=0)
    max_in_flight: int = Field(default=256, ge=1, le=5000)
    max_requests: int = Field(default=5000, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _sensible(self) -> LoadSettings:
        if any(weight <= 0 for weight in self.kinds.values()):
            raise ValueError("kinds: weights must be above 0; leave out what is not to be asked")
        if self.loop == "closed" and self.shape and self.shape.kind == "burst" and self.shape.shortest_s < TICK_S:
            raise ValueError(
                "shape 'burst': in a closed loop the number of users changes once a second, so burst_s and what every_s leaves "
                f"beside it must be at least {TICK_S:g}, given {self.shape.shortest_s:g}; lengthen them, or take loop: open"
            )
        if any(n < 1 for n in self.users) or any(rate <= 0 for rate in self.rates):
            raise ValueError("users must be at least 1 and rates above 0")
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError("tenants: two have the same name")
        return self

    def keys(self, environ: Mapping[str, str]) -> dict[str, str]:
        """API keys by tenant, of those that have one; InputError where one is missing."""
        found = {tenant.name: tenant.key(environ) for tenant in self.tenants}
        return {name: key for name, key in found.items() if key}

    def resolved(self) -> LoadSettings:
        """With absolute paths; given ones are relative to the current folder."""
        tenants = tuple(
            t.model_copy(update={"key_file": t.key_file.resolve()}) if t.key_file else t for t in self.tenants
        )
        return self.model_copy(update={"prompts": self.prompts.resolve(), "tenants": tenants})
