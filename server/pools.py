"""Which engine gets a request: a pure function of the request's facts, the pools, their state, and one random number.

A pool is all engines of one model with one draft (or none). Speculation comes first where a draft stands ready; what a
draft refuses goes to a pool without one. Within a pool, the engine with the fewest requests is asked first, then the
one that has seen the longest beginning of the prompt, then the first by name.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from server.errors import Refusal
from server.facts import HEADER, Facts

NO_DRAFT = "none"


class Reason(enum.Enum):
    """Why a request went where it went: label `reason` of the metrics."""

    DEFAULT = "default"
    """The pool that its model's requests go to."""
    MIN_P = "min_p"
    LOGIT_BIAS = "logit_bias"
    HEADER = "header"
    """The client asked for no speculation."""
    SHARE = "share"
    """It was drawn for a pool that gets a share of the traffic only: a canary, or a draft that is probed."""
    MOVED = "moved"
    """The pool that it would have gone to gets a share of the traffic only."""
    FALLBACK = "fallback"
    """The pool that it should have gone to has no engine for it now."""


@dataclass(frozen=True)
class Pool:
    """All engines of one model with one draft."""

    model: str
    draft: str | None
    engines: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """What headers, metrics and shares call it."""
        return f"{self.model}/{self.draft or NO_DRAFT}"

    @cached_property
    def headers(self) -> dict[str, str]:
        """What the client of an answer is told of who gave it."""
        return {"x-understudy-pool": _shown(self.name), "x-understudy-draft": _shown(self.draft or NO_DRAFT)}


@dataclass(frozen=True)
class EngineState:
    """What routing needs to know of one engine now."""

    usable: bool = True
    """Taken in, well, and let through by its breaker."""
    in_flight: int = 0
    max_in_flight: int | None = None
    overlap: Callable[[], int] = field(default=lambda: 0, repr=False)
    """How many blocks of this prompt's beginning it has seen; asked only to break a tie."""

    @property
    def full(self) -> bool:
        """Whether it has as many requests as it may have."""
        return self.max_in_flight is not None and self.in_flight >= self.max_in_flight


@dataclass(frozen=True)
class Candidate:
    """An engine to try, and why it is that one."""

    engine: str
    pool: Pool
    reason: Reason


Shares = Mapping[str, float]
"""By pool's name: the share of the ordinary traffic that it gets, from 0 to 1. Pools without one get what is left."""

NO_SHARES: Shares = {}


def _shown(name: str) -> str:
    """A name as a header can carry it: what is not printable ASCII is replaced."""
    return "".join(letter if " " <= letter <= "~" else "?" for letter in name)


def make_pools(engines: Sequence[tuple[str, str, str | None]]) -> tuple[Pool, ...]:
    """Pools of engines given as (name, model, draft), in the order in which they first come."""
    members: dict[tuple[str, str | None], list[str]] = {}
    for name, model, draft in engines:
        members.setdefault((model, draft), []).append(name)
    return tuple(Pool(model, draft, tuple(names)) for (model, draft), names in members.items())


def route(
    facts: Facts, pools: Sequence[Pool], states: Mapping[str, EngineState], chance: float, shares: Shares = NO_SHARES,
    retry_after_s: int = 1,
) -> list[Candidate]:  # fmt: skip
    """The engines to try, best first; at least one.

    Args:
        facts: of the request; the model may be left out where there is only one.
        pools: all there are.
        states: of all their engines, by name.
        chance: a random number from [0, 1), which decides whether the request is one of a share.
        shares: pools that get only a share of the ordinary traffic. They stay a last resort for the rest, and requests
            that need an engine without a draft know no shares.
        retry_after_s: what is told with a 503.

    Raises:
        Refusal: 404 for an unknown model, 400 for none of several and for a request that only an engine without a
            draft could serve where there is none, 503 when no engine can take it now.
    """
    fitting = _of_model(facts, pools)
    ranked = _plain(facts, fitting) if facts.plain_because else _ordinary(fitting, chance, shares)
    found: list[Candidate] = []
    for rank, (group, reason) in enumerate(ranked):
        found += _candidates(group, states, Reason.FALLBACK if rank else reason)
    if not found:
        raise _nobody(ranked, states, retry_after_s)
    return found


def unknown_model(model: str, known: Iterable[str]) -> Refusal:
    """What is told to who asks for a model that is not among those that are served."""
    there_are = ", ".join(dict.fromkeys(known))
    return Refusal(404, f"no model {model[:80]!r} here; there are {there_are}", "model_not_found", "model")


def _of_model(facts: Facts, pools: Sequence[Pool]) -> list[Pool]:
    models = dict.fromkeys(pool.model for pool in pools)
    if facts.model is None and len(models) > 1:
        raise Refusal(400, f"'model' must be one of {', '.join(models)}, given none", "missing_model", "model")
    if facts.model is not None and facts.model not in models:
        raise unknown_model(facts.model, models)
    return [pool for pool in pools if facts.model in (None, pool.model)]


Group = tuple[Sequence[Pool], Reason]
"""Pools among whose engines no difference is made, and why a request would go there."""


def _plain(facts: Facts, pools: Sequence[Pool]) -> list[Group]:
    plain = [pool for pool in pools if pool.draft is None]
    assert facts.plain_because is not None
    if not plain:
        raise _needs_plain(facts.plain_because, pools[0].model)
    return [(plain, Reason(facts.plain_because))]


def _needs_plain(because: str, model: str) -> Refusal:
    only = f"every engine of model {model!r} runs with a draft"
    if because == Reason.HEADER.value:
        message = f"{only}, so speculation cannot be switched off: leave out the header {HEADER}"
        return Refusal(400, f"{message}, or have an engine without a draft added", "no_plain_engine")
    message = (
        f"'{because}' does not work with speculative decoding, and {only}: leave '{because}' out, "
        "or have an engine without a draft added"
    )
    return Refusal(400, message, "no_plain_engine", because)


def _ordinary(pools: Sequence[Pool], chance: float, shares: Shares) -> list[Group]:
    """Groups in the order in which they are tried; the first is where the request belongs."""
    shared = [pool for pool in pools if pool.name in shares]
    drawn = _draw(shared, chance, shares)
    drafting = [pool for pool in pools if pool.draft is not None and pool not in shared]
    plain = [pool for pool in pools if pool.draft is None and pool not in shared]
    moved = bool(plain) and not drafting and any(pool.draft is not None for pool in shared)
    groups: list[Group] = [
        ([drawn] if drawn else [], Reason.SHARE),
        (drafting, Reason.DEFAULT),
        (plain, Reason.MOVED if moved else Reason.DEFAULT),
        ([pool for pool in shared if pool is not drawn], Reason.DEFAULT),
    ]
    return [group for group in groups if group[0]]


def _draw(shared: Sequence[Pool], chance: float, shares: Shares) -> Pool | None:
    """The pool whose part of [0, 1) holds ``chance``; None for the part that is left."""
    bound = 0.0
    for pool in shared:
        bound += shares[pool.name]
        if chance < bound:
            return pool
    return None


def _candidates(pools: Sequence[Pool], states: Mapping[str, EngineState], reason: Reason) -> list[Candidate]:
    """The engines of a group that can take a request, best first."""
    ready = [
        (states[name], Candidate(name, pool, reason))
        for pool in pools
        for name in pool.engines
        if states[name].usable and not states[name].full
    ]
    if len(ready) < 2:
        return [candidate for _, candidate in ready]
    keyed = [((state.in_flight, -state.overlap(), candidate.engine), candidate) for state, candidate in ready]
    return [candidate for _, candidate in sorted(keyed, key=lambda pair: pair[0])]


def _nobody(ranked: Sequence[Group], states: Mapping[str, EngineState], retry_after_s: int) -> Refusal:
    pools = [pool for group, _ in ranked for pool in group]
    if any(states[name].usable for pool in pools for name in pool.engines):
        message = "every engine that could take this request has as many as it may have; try again later"
        return Refusal(503, message, "engine_busy", retry_after_s=retry_after_s)
    return Refusal(
        503, "the engine cannot be reached; try again later", "engine_unreachable", retry_after_s=retry_after_s
    )
