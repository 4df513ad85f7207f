"""Which pool gets only a share of the traffic: a canary, and drafts that are stale. Pure functions of plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from stages.errors import InputError
from stages.settings import Settings


class CanarySettings(Settings):
    """A second draft on trial. ``share: 1`` promotes it, ``share: 0`` rolls it back."""

    pool: str | None = Field(default=None, description="name of its pool")
    draft: str | None = Field(default=None, description="or name of its draft")
    share: float = Field(default=0.1, ge=0, le=1, description="of the traffic that may be speculated on")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.pool is None) == (self.draft is None):
            raise PydanticCustomError("canary", "give either 'pool' or 'draft' of the canary")
        return self

    def is_it(self, pool: str, draft: str | None) -> bool:
        """Whether a pool is the canary's."""
        return pool == self.pool or (draft is not None and draft == self.draft)


def check_canary(canary: CanarySettings | None, pools: Mapping[str, str | None]) -> None:
    """Refuses a canary that is none of the pools, which are given as for `shares`.

    Raises:
        InputError: names what there is instead.
    """
    if canary is None or any(canary.is_it(name, draft) for name, draft in pools.items()):
        return
    drafts = dict.fromkeys(draft for draft in pools.values() if draft is not None)
    what, given, known = ("pool", canary.pool, pools) if canary.pool else ("draft", canary.draft, drafts)
    there_are = ", ".join(known) or "none"
    raise InputError(
        f"canary: no engine has the {what} {given!r}; there are {there_are}; name one, or leave 'canary' out"
    )


def shares(
    pools: Mapping[str, str | None], stale: Collection[str], probing_share: float, canary: CanarySettings | None
) -> dict[str, float]:
    """Shares of one model's ordinary traffic, for those of its pools that get only a share; the others get what is left.

    The canary's pools take theirs first. Of the rest, pools with stale drafts keep ``probing_share`` between them, if
    there is anyone to take over: pools with other drafts, or without one.

    Args:
        pools: their drafts by their names; None for a pool without one.
        stale: names of drafts.
        probing_share: of the traffic, for drafts that may come back.
        canary: which pool is on trial.
    """
    on_trial = {name for name, draft in pools.items() if canary is not None and canary.is_it(name, draft)}
    others = pools.keys() - on_trial
    if canary is None or not on_trial or not others:
        return _probing(pools, stale, probing_share)
    taken = min(canary.share, probing_share) if any(pools[name] in stale for name in on_trial) else canary.share
    rest = _probing({name: pools[name] for name in others}, stale, probing_share * (1 - taken))
    return dict.fromkeys(sorted(on_trial), taken / len(on_trial)) | rest


def _probing(pools: Mapping[str, str | None], stale: Collection[str], share: float) -> dict[str, float]:
    old = sorted(name for name, draft in pools.items() if draft is not None and draft in stale)
    return dict.fromkeys(old, share / len(old)) if 0 < len(old) < len(pools) else {}
