"""What the gateway concludes from the requests that ended: drift of its drafts, a canary's comparison, the live figures."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from server.acceptance import AcceptanceRecord
from server.comparison import Comparison
from server.drift import DriftGuard, Expected, State, Turn
from server.exchange import Exchange
from server.live import PoolFigures, Throughput, speedups
from server.metrics import Metrics
from server.pools import NO_DRAFT, Pool, Shares
from server.settings import GatewaySettings
from server.sharing import shares
from stages.progress import log

ALERTS = 20
"""How many alerts the live page remembers."""

Labels = tuple[str, str]
"""Model and draft, as the metrics name them."""


class Watch:
    """Sees every finished request once.

    Args:
        settings: expected figures, thresholds, and the canary.
        metrics: told of drift.
        pools: all there are.
        clock: monotonic seconds.
        tell: takes the line of an alert.
    """

    def __init__(
        self, settings: GatewaySettings, metrics: Metrics, pools: Sequence[Pool],
        clock: Callable[[], float] = time.monotonic, tell: Callable[[str], object] = log,
    ):  # fmt: skip
        self._settings = settings
        self._metrics = metrics
        self._pools = {(pool.model, pool.draft or NO_DRAFT): pool for pool in pools}
        self._clock = clock
        self._tell = tell
        self._guards = {key: self._guard(key, expected) for key, expected in settings.expected().items()}
        self._speedups = settings.expected_speedups()
        self._figures = {key: PoolFigures() for key in self._pools}
        self._throughput = Throughput()
        self._comparison = Comparison()
        self._shares = self._decide()
        self.alerts: deque[dict[str, Any]] = deque(maxlen=ALERTS)
        """The latest first: turns of drafts, and of engines."""

    def see(self, route: str, exchange: Exchange) -> None:
        """Takes a finished request of any route in; those that no engine was asked for say nothing here."""
        key = exchange.served_by
        if key is None or key not in self._pools:
            return
        now = self._clock()
        self._throughput.see(now, exchange)
        self._figures[key].see(now, exchange)
        if self._settings.canary is not None:
            self._comparison.see(self._pools[key].name, exchange)
        guard = self._guards.get(key)
        if guard is not None and isinstance(exchange.acceptance, AcceptanceRecord):
            turn = guard.see(now, exchange.acceptance)
            self._metrics.drift(key, guard.state is State.STALE, guard.length(now))
            if turn is not None:
                self._alert(turn)

    def shares(self) -> Shares:
        """The pools that get only a share of the ordinary traffic; routing asks at each request."""
        return self._shares

    def reload(self, settings: GatewaySettings) -> None:
        """Takes over a new canary (of another pool or draft, the comparison begins anew) and new settings of drift."""
        before, now = self._settings.canary, settings.canary
        named = [canary and (canary.pool, canary.draft) for canary in (before, now)]
        self._settings = self._settings.model_copy(update={"canary": now, "drift": settings.drift})
        if named[0] != named[1]:
            self._comparison = Comparison()
        for guard in self._guards.values():
            guard.use(settings.drift)
        self._shares = self._decide()

    def canary_report(self) -> dict[str, Any]:
        """The canary's comparison with its model's other pools that speculate, or the plain ones where there are no others."""
        canary = self._settings.canary
        if canary is None:
            return {"canary": None, "main": [], "pools": [], "rows": []}
        on_trial = [pool for pool in self._pools.values() if canary.is_it(pool.name, pool.draft)]
        models = {pool.model for pool in on_trial}
        others = [pool for pool in self._pools.values() if pool not in on_trial and pool.model in models]
        main = [pool.name for pool in others if pool.draft is not None] or [pool.name for pool in others]
        names = [pool.name for pool in on_trial]
        rows = self._comparison.rows(main, names)
        return {"canary": canary.model_dump(), "main": main, "pools": names, "rows": rows}

    def figures(self) -> dict[str, Any]:
        """What the live page shows."""
        now = self._clock()
        pools = [self._pool(now, key, pool) for key, pool in self._pools.items()]
        return {**self._throughput.as_dict(now), "pools": pools, "alerts": list(self.alerts)}

    def _pool(self, now: float, key: Labels, pool: Pool) -> dict[str, Any]:
        figures = self._figures[key].as_dict(now)
        found = {"name": pool.name, "draft": pool.draft, "share": self._shares.get(pool.name), **figures}
        if pool.draft is None:
            return found
        guard = self._guards.get(key)
        plain = self._figures.get((pool.model, NO_DRAFT))
        expected = self._speedups.get(key)
        length, tokens = figures["mean_acceptance_length"], figures["draft_tokens_per_draft"]
        expected_length = guard.expected.at(tokens or math.inf) if guard else None
        speedup = speedups(expected, expected_length, length, figures["tpot_s"], plain.tpot_s(now) if plain else None)
        state = guard.state.value if guard else None
        return found | {"state": state, "expected_mean_acceptance_length": expected_length, "speedup": speedup}

    def _decide(self) -> dict[str, float]:
        """Shares of all models' pools, from the drafts' states and the canary."""
        found: dict[str, float] = {}
        for model in {model for model, _ in self._pools}:
            pools = {pool.name: pool.draft for pool in self._pools.values() if pool.model == model}
            stale = {key[1] for key, guard in self._guards.items() if key[0] == model and guard.state is State.STALE}
            found |= shares(pools, stale, self._settings.drift.probing_share, self._settings.canary)
        return found

    def alert_of_engine(self, engine: str, state: str, text: str) -> None:
        """Notes that an engine went, came back, or is left alone or not by its breaker; the log has its own lines of that."""
        self._note({"engine": engine, "state": state, "text": text})

    def _alert(self, turn: Turn) -> None:
        self._shares = self._decide()
        self._tell(turn.line())
        self._note({"draft": turn.draft, "state": turn.state.value, "text": turn.line()})

    def _note(self, alert: dict[str, str]) -> None:
        self.alerts.appendleft({"at": datetime.now(UTC).isoformat(timespec="seconds"), **alert})

    def _guard(self, key: Labels, expected: Expected) -> DriftGuard:
        self._metrics.drift(key, False, None)
        return DriftGuard(key[1], expected, self._settings.drift)
