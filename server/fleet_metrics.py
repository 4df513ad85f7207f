"""What Prometheus gets to see of the engines: read off the fleet whenever somebody asks, so that it costs no request anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from server.fleet import Fleet
from server.member import Member
from server.pools import NO_DRAFT

Read = Callable[[Member], float]


class FleetMetrics(Collector):
    """The fleet as metrics.

    Args:
        fleet: is read.
        registry: gets them.
    """

    def __init__(self, fleet: Fleet, registry: CollectorRegistry):
        self._fleet = fleet
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        now_s = self._fleet.clock()
        yield self._info()
        yield self._gauge("up", "1 when the engine answers, was found fit and makes progress", lambda one: one.up)
        yield self._gauge("in_flight", "Requests at the engine", lambda one: one.health.running)
        state = "0 closed, 1 half-open (one request is let through), 2 open"
        yield self._gauge("breaker_state", state, lambda one: one.breaker.state(now_s).value)
        yield self._counter("retries", "Requests tried at another engine after this one", lambda one: one.retries)
        yield self._counter("departures", "Times the engine went away", lambda one: one.health.away)
        own = "Tokens the gateway had a quiet engine generate"
        yield self._counter("token_probes", own, lambda one: one.token_probes)
        yield self._routed()

    def _info(self) -> Metric:
        labels = ["engine", "model", "draft", "target"]
        family = GaugeMetricFamily("understudy_engine_info", "The engines, always 1", labels=labels)
        for name, member in self._fleet.members.items():
            entry = member.entry
            family.add_metric([name, entry.served_model, entry.draft or NO_DRAFT, entry.target or ""], 1)
        return family

    def _gauge(self, name: str, text: str, read: Read) -> Metric:
        family = GaugeMetricFamily(f"understudy_engine_{name}", text, labels=["engine"])
        for engine, member in self._fleet.members.items():
            family.add_metric([engine], float(read(member)))
        return family

    def _counter(self, name: str, text: str, read: Read) -> Metric:
        family = CounterMetricFamily(f"understudy_engine_{name}", text, labels=["engine"])
        for engine, member in self._fleet.members.items():
            family.add_metric([engine], float(read(member)))
        return family

    def _routed(self) -> Metric:
        text = "Requests by the pool they were sent to first, and why"
        family = CounterMetricFamily("understudy_routed_requests", text, labels=["pool", "reason"])
        for (pool, reason), count in list(
            self._fleet.routed.items()
        ):  # read by another thread than the one that counts
            family.add_metric([pool, reason], count)
        return family
