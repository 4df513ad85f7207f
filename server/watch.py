"""What the gateway concludes from the requests that ended: drift of its drafts, a canary's comparison, the live figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from server.acceptance import AcceptanceRecord
from server.comparison import Comparison
from server.drift import DriftGuard, State, Turn
from server.exchange import Exchange
from server.live import PoolFigures, Throughput, speedups
from server.metrics import Metrics
from server.settings import GatewaySettings
from server.sharing import CanarySettings, shares
from stages.progress import log

ALERTS = 20
"""How many alerts the live page remembers."""


class Watch:
    """Sees every finished request once.

    Args:
        settings: expected figures, thresholds, and the canary.
        metrics: told of drift.
        clock: monotonic seconds.
        tell: takes the line of an alert.
    """

    def __init__(
        self, settings: GatewaySettings, metrics: Metrics,
        clock: Callable[[], float] = time.monotonic, tell: Callable[[str], object] = log,
    ):  # fmt: skip
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._tell = tell
        self._guards = {name: self._guard(name, length) for name, length in settings.expected_lengths_by_draft.items()}
        self._only = (settings.served_model_name, settings.draft_name or "none")
        self._pools: dict[str, PoolFigures] = {}
        self._throughput = Throughput()
        self.comparison = Comparison()
        self.alerts: deque[dict[str, Any]] = deque(maxlen=ALERTS)

    @property
    def canary(self) -> CanarySettings | None:
        """The canary as the settings have it now."""
        return self._settings.canary

    def reload(self, settings: GatewaySettings) -> None:
        """Takes over a new canary (of another pool or draft, the comparison begins anew) and new thresholds."""
        before, now = self._settings.canary, settings.canary
        named = [canary and (canary.pool, canary.draft) for canary in (before, now)]
        self._settings = self._settings.model_copy(update={"canary": now, "drift": settings.drift})
        if now is not None and named[0] != named[1]:
            self.comparison = Comparison()
        for guard in self._guards.values():
            guard.settings = settings.drift

    def see(self, exchange: Exchange) -> None:
        """Takes a finished request in."""
        now, served_by = self._clock(), exchange.served_by or self._only
        pool = "/".join(served_by)
        self._throughput.see(now, exchange)
        self._pools.setdefault(pool, PoolFigures()).see(now, exchange)
        if self._settings.canary is not None:
            self.comparison.see(pool, exchange)
        guard = self._guards.get(served_by[1])
        if guard is not None and isinstance(exchange.acceptance, AcceptanceRecord):
            turn = guard.see(now, exchange.acceptance)
            self._metrics.drift(guard.draft, guard.state is State.STALE, guard.length(now))
            if turn is not None:
                self._alert(turn)

    def pools(self) -> dict[str, str | None]:
        """The drafts of all pools by their names."""
        return {"/".join(self._only): self._settings.draft_name}

    def stale(self) -> set[str]:
        """Names of the drafts that are stale."""
        return {name for name, guard in self._guards.items() if guard.state is State.STALE}

    def shares(self, pools: Mapping[str, str | None]) -> dict[str, float]:
        """Shares of those pools of one model that get only a share; ``pools`` has their drafts by their names."""
        return shares(pools, self.stale(), self._settings.drift.probing_share, self._settings.canary)

    def canary_report(self, pools: Mapping[str, str | None]) -> dict[str, Any]:
        """The canary's comparison with the other pools that speculate, or with the plain ones where there are no others."""
        canary = self._settings.canary
        if canary is None:
            return {"canary": None, "main": [], "pools": [], "rows": []}
        on_trial = [name for name, draft in pools.items() if canary.is_it(name, draft)]
        others = [name for name in pools if name not in on_trial]
        main = [name for name in others if pools[name] is not None] or others
        rows = self.comparison.rows(main, on_trial)
        return {"canary": canary.model_dump(), "main": main, "pools": on_trial, "rows": rows}

    def as_dict(self, pools: Mapping[str, str | None]) -> dict[str, Any]:
        """All figures of the live page."""
        now = self._clock()
        plain = [
            self._pools[name].tpot_s(now) for name, draft in pools.items() if draft is None and name in self._pools
        ]
        plain_tpot_s = next((value for value in plain if value is not None), None)
        found = self.shares(pools)
        return {
            **self._throughput.as_dict(now),
            "pools": [self._pool(now, name, draft, found.get(name), plain_tpot_s) for name, draft in pools.items()],
            "alerts": list(self.alerts),
        }

    def _pool(
        self, now: float, name: str, draft: str | None, share: float | None, plain_tpot_s: float | None
    ) -> dict[str, Any]:
        figures = self._pools.get(name, PoolFigures()).as_dict(now)
        pool = {"name": name, "draft": draft, "share": share, **figures}
        if draft is None:
            return pool
        guard = self._guards.get(draft)
        expected = self._settings.expected_speedup if draft == self._settings.draft_name else None
        length, expected_length = figures["mean_acceptance_length"], guard.expected if guard else None
        return pool | {
            "state": guard.state.value if guard else None,
            "expected_mean_acceptance_length": expected_length,
            "speedup": speedups(expected, expected_length, length, figures["tpot_s"], plain_tpot_s),
        }

    def _alert(self, turn: Turn) -> None:
        self._tell(turn.line())
        at = datetime.now(UTC).isoformat(timespec="seconds")
        self.alerts.appendleft({"at": at, "draft": turn.draft, "state": turn.state.value, "text": turn.line()})

    def _guard(self, name: str, length: float) -> DriftGuard:
        self._metrics.drift(name, False, None)
        return DriftGuard(name, length, self._settings.drift)
