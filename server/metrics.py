"""What Prometheus gets to see, from one finished exchange at a time. Only this file and fleet_metrics know prometheus_client.

Labels are bounded: `model`, `draft` and `tenant` come from the configuration, `route`, `status`, `kind` and `reason` from fixed
lists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.acceptance import AcceptanceRecord
from server.engine_list import EngineEntry
from server.exchange import Exchange
from server.pools import NO_DRAFT
from server.settings import GatewaySettings

Metric = TypeVar("Metric", Counter, Gauge, Histogram)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LABELS = ("model", "draft", "route", "tenant")
UNROUTED = "unrouted"
"""Labels `model` and `draft` of requests that ended before an engine was asked, where there are several."""
TTFT_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
TOKEN_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
E2E_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
QUEUE_S = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
OVERHEAD_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)
RATE = tuple(step / 20 for step in range(1, 21))
LENGTH = (1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 16)


def _remembering(metric: Metric) -> Metric:
    """Looks labels up in a dictionary: they are bounded, and prometheus_client's own way takes longer."""
    metric.labels = functools.cache(metric.labels)  # type: ignore[method-assign]
    return metric


class Metrics:
    """The gateway's metrics, in a registry of their own.

    Args:
        settings: for the label values and the expected figures.
    """

    def __init__(self, settings: GatewaySettings):
        self.registry = CollectorRegistry()
        entries = settings.entries()
        self._unrouted = (settings.served_model_name, settings.draft_name or NO_DRAFT)
        """Labels of requests that no engine was asked for, which are the only engine's where there is no list."""
        if settings.engines:
            self._unrouted = (UNROUTED, UNROUTED)
        self._requests = self._counter("requests", "Requests by how they ended", "status")
        self._in_flight = self._gauge("requests_in_flight", "Requests under way, the engine's queue included", LABELS)
        self._refusals = self._counter("refusals", "Requests answered with an error of the gateway", "reason")
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "Time waited for a place, by requests that had to wait", QUEUE_S
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answered requests")
        self._output_tokens = self._counter("output_tokens", "Output tokens of answered requests")
        self._drafts = self._counter("drafts", "Drafts (steps in which the target judged draft tokens)", "kind")
        self._draft_tokens = self._counter("draft_tokens", "Draft tokens the target judged", "kind")
        self._accepted_tokens = self._counter("accepted_tokens", "Draft tokens the target accepted", "kind")
        self._expected_tokens = self._counter(
            "expected_accepted_tokens",
            "Draft tokens that would be accepted of as many proposed ones, were the draft as good as when it was chosen", "kind",
        )  # fmt: skip
        self._expected = settings.expected()
        self._missing = self._counter(
            "acceptance_records_missing",
            "Requests without an acceptance record (absent: n > 1, ended at a stop string, /v1/responses); "
            "their steps are in the engine's counters only", "kind", "reason",
        )  # fmt: skip
        self._ttft = self._histogram("time_to_first_token_seconds", "Headers to first chunk of a stream", TTFT_S)
        self._tpot = self._histogram("time_per_output_token_seconds", "(e2e - ttft) / (output tokens - 1)", TOKEN_S)
        self._gap = self._histogram("chunk_gap_seconds", "Between two chunks of a stream: a step, not a token", TOKEN_S)
        self._e2e = self._histogram("e2e_seconds", "Headers to last byte, answered requests", E2E_S)
        self._overhead = self._histogram("gateway_overhead_seconds", "The gateway's own time on a request", OVERHEAD_S)
        self._rate = self._histogram("acceptance_rate", "Accepted / draft tokens, per request", RATE, "kind")
        self._length = self._histogram("mean_acceptance_length", "1 + accepted / drafts, per request", LENGTH, "kind")
        self._stale = self._gauge("draft_stale", "1 while a draft accepts clearly less than expected", LABELS[:2])
        self._sliding = self._gauge(
            "sliding_mean_acceptance_length",
            "1 + accepted / drafts over the drift guard's window; NaN: small sample",
            LABELS[:2],
        )
        self._observers: list[Callable[[str, Exchange], None]] = []
        self._expect("acceptance_rate", entries)
        self._expect("mean_acceptance_length", entries)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def observe_with(self, observer: Callable[[str, Exchange], None]) -> None:
        """Lets ``observer`` see every exchange that ends, and its route, too."""
        self._observers.append(observer)

    def drift(self, labels: tuple[str, str], stale: bool, length: float | None) -> None:
        """Shows what the drift guard thinks of a model's draft; ``length`` is None while its sample is too small."""
        self._stale.labels(*labels).set(stale)
        self._sliding.labels(*labels).set(math.nan if length is None else length)

    def show_queue(self, length: Callable[[], int]) -> None:
        """Shows how many requests wait for a place, whenever somebody looks."""
        self._gauge("requests_queued", "Requests waiting for a place at the engines", ()).set_function(length)

    def begin(self, route: str, exchange: Exchange) -> None:
        """Counts a request in."""
        self._in_flight.labels(*self._labels(route, exchange)).inc()

    def move(self, route: str, exchange: Exchange, served_by: tuple[str, str]) -> None:
        """Notes which engine a request is at: from here on it has that one's labels."""
        self._in_flight.labels(*self._labels(route, exchange)).dec()
        exchange.served_by = served_by
        self._in_flight.labels(*self._labels(route, exchange)).inc()

    def chunk_gap(self, route: str, exchange: Exchange, gap_s: float) -> None:
        """Records the time between two chunks of a stream."""
        self._gap.labels(*self._labels(route, exchange)).observe(gap_s)

    def refused(self, route: str, exchange: Exchange, reason: str) -> None:
        """Counts an error that the gateway answered with, by its code."""
        self._refusals.labels(*self._labels(route, exchange), reason).inc()

    def end(self, route: str, exchange: Exchange) -> None:
        """Counts a request out and records what it was."""
        labels = self._labels(route, exchange)
        self._in_flight.labels(*labels).dec()
        self._requests.labels(*labels, exchange.status).inc()
        self._record_times(labels, exchange)
        if exchange.usage is not None:
            self._prompt_tokens.labels(*labels).inc(exchange.usage.prompt_tokens)
            self._output_tokens.labels(*labels).inc(exchange.usage.output_tokens)
        self._record_acceptance((*labels, exchange.kind.value), exchange)
        for observer in self._observers:
            observer(route, exchange)

    def _record_times(self, labels: tuple[str, ...], exchange: Exchange) -> None:
        whole = exchange.succeeded
        times = (
            (self._queue_wait, exchange.queued_s),
            (self._ttft, exchange.ttft_s),
            (self._tpot, exchange.tpot_s if whole else None),
            (self._e2e, exchange.e2e_s if whole else None),
            (self._overhead, exchange.overhead_s if whole else None),
        )
        for histogram, seconds in times:
            if seconds is not None:
                histogram.labels(*labels).observe(seconds)

    def _record_acceptance(self, labels: tuple[str, ...], exchange: Exchange) -> None:
        record = exchange.acceptance
        if not isinstance(record, AcceptanceRecord):
            if labels[1] != NO_DRAFT and exchange.missing is not None:
                self._missing.labels(*labels, exchange.missing.value).inc()
            return
        self._drafts.labels(*labels).inc(record.num_drafts)
        self._draft_tokens.labels(*labels).inc(record.num_draft_tokens)
        self._accepted_tokens.labels(*labels).inc(record.num_accepted_tokens)
        expected = self._expected.get((labels[0], labels[1]))
        if expected is not None and record.num_drafts:
            length = expected.at(record.num_draft_tokens / record.num_drafts)
            self._expected_tokens.labels(*labels).inc(record.num_drafts * (length - 1))
        if record.acceptance_rate is not None:
            self._rate.labels(*labels).observe(record.acceptance_rate)
        if record.mean_acceptance_length is not None:
            self._length.labels(*labels).observe(record.mean_acceptance_length)

    def _counter(self, name: str, text: str, *more: str) -> Counter:
        return _remembering(Counter(f"understudy_{name}", text, (*LABELS, *more), registry=self.registry))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *more: str) -> Histogram:
        return _remembering(
            Histogram(f"understudy_{name}", text, (*LABELS, *more), buckets=buckets, registry=self.registry)
        )

    def _labels(self, route: str, exchange: Exchange) -> tuple[str, ...]:
        return (*(exchange.served_by or self._unrouted), route, exchange.tenant)

    def _expect(self, name: str, entries: Sequence[EngineEntry]) -> None:
        """The first figure that is given for a model and draft."""
        stated = [(entry, value) for entry in entries if (value := getattr(entry, f"expected_{name}")) is not None]
        if stated:
            gauge = self._gauge(f"expected_{name}", "As measured when the pair was chosen", LABELS[:2])
            for entry, value in reversed(stated):
                gauge.labels(entry.served_model, entry.draft or NO_DRAFT).set(value)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return _remembering(Gauge(f"understudy_{name}", text, labels, registry=self.registry))
