"""One engine behind the gateway: its connections, and what is known of it."""

from __future__ import annotations

import asyncio

from server.breaker import Breaker, BreakerState
from server.engine_list import EngineEntry
from server.health import Health
from server.prefixes import PrefixRecord
from server.settings import ONLY, GatewaySettings
from server.upstream import Upstream


class Member:
    """One engine.

    Args:
        entry: its settings.
        settings: the gateway's.
        taken_in: whether it gets requests before it has been looked at.
    """

    def __init__(self, entry: EngineEntry, settings: GatewaySettings, taken_in: bool):
        self.entry = entry
        self.upstream = Upstream(entry, settings)
        self.health = Health(settings.stuck_s)
        self.breaker = Breaker(settings.breaker_rule)
        self.prefixes = PrefixRecord()
        self.fit = asyncio.Event()
        """Set while it is one that has passed what it must since it last came."""
        if taken_in:
            self.fit.set()
        self.unfit = False
        """Whether it has been found unfit since it last came."""
        self.trouble = ""
        """Why it could not be taken in the last time, so that it is said once."""
        self.retries = 0
        """Requests that were sent to another engine after this one had failed."""
        self.token_probes = 0
        """Tokens that the gateway itself had it generate."""
        self.nudge = asyncio.Event()
        """Set when it should be probed now."""
        self.probed = asyncio.Event()
        """Set when it has been probed once."""
        self._told_state: str | None = None
        self._told_open = False

    @property
    def up(self) -> bool:
        """Whether it is there, found fit and not stuck."""
        return bool(self.health.reachable) and self.fit.is_set() and not self.health.stuck

    @property
    def state(self) -> str:
        """In a word: up, stuck, or away, which it also is until it has been taken in."""
        return "up" if self.up else "stuck" if self.health.stuck else "away"

    def turns(self, now_s: float) -> list[tuple[str, str]]:
        """What has changed since this was last asked, in a word and a line each; nothing before it has been up once."""
        found, before = [], self._told_state
        who = "the engine" if self.entry.name == ONLY else f"engine {self.entry.name}"
        if self.state != before and (before is not None or self.up):
            self._told_state = self.state
            word = "back" if self.up else self.state
            found += [(word, f"{who} is {word}")] if before is not None else []
        opened = self.breaker.state(now_s) is not BreakerState.CLOSED
        if opened is not self._told_open:
            self._told_open = opened
            word, why = ("opened", "it failed again and again") if opened else ("closed", "it answers again")
            found.append((f"breaker {word}", f"{who}: breaker {word}, because {why}"))
        return found

    def renew(self) -> None:
        """Forgets what was known of the engine that was here before."""
        self.fit.clear()
        self.unfit = False
        self.trouble = ""
        self.prefixes.clear()
