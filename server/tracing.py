"""OpenTelemetry traces, an extra that is off by default: one span for each relayed request. The only file that knows it.

A span is made when its request has ended, from the times that were taken anyway; so tracing adds nothing while tokens flow.
It continues the client's trace (``traceparent``); engines are not told of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from server.acceptance import AcceptanceRecord
from server.exchange import CLIENT_GONE, Exchange
from stages.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings", "responses": "chat"}
"""OpenTelemetry's words for what is done, by the name of the route."""
SERVICE = "understudy"


def attributes(route: str, exchange: Exchange) -> dict[str, str | int | float]:
    """What is told of a request: OpenTelemetry's names for models and tokens, ours for speculation. Never a prompt."""
    found: dict[str, str | int | float] = {
        "gen_ai.operation.name": OPERATIONS.get(route, route), "understudy.status": exchange.status,
        "understudy.kind": exchange.kind.value,
    }  # fmt: skip
    if exchange.served_by is not None:
        found["gen_ai.request.model"], found["understudy.draft"] = exchange.served_by
    if exchange.usage is not None:
        found["gen_ai.usage.input_tokens"] = exchange.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = exchange.usage.output_tokens
    record = exchange.acceptance
    if isinstance(record, AcceptanceRecord):
        found["understudy.num_drafts"] = record.num_drafts
        found["understudy.num_draft_tokens"] = record.num_draft_tokens
        found["understudy.num_accepted_tokens"] = record.num_accepted_tokens
    return found


def failed(status: str) -> bool:
    """Whether a span is marked as an error: faults of ours and of engines, not refusals nor clients that left."""
    return status != CLIENT_GONE and not ("200" <= status < "500")


class Tracing:
    """Makes spans of finished exchanges.

    Args:
        exporter: takes them, in a thread of its own.
    """

    def __init__(self, exporter: SpanExporter):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def see(self, route: str, exchange: Exchange) -> None:
        """Makes a span of a finished exchange."""
        from opentelemetry.trace import SpanKind, StatusCode

        began_s, ended_s = time.time() - exchange.clock(), exchange.ended_s or exchange.clock()

        def at(seconds: float) -> int:
            return int((began_s + seconds) * 1e9)

        carrier = {"traceparent": exchange.traceparent} if exchange.traceparent else {}
        span = self._tracer.start_span(
            f"{OPERATIONS.get(route, route)} {exchange.served_by[0] if exchange.served_by else ''}".rstrip(),
            context=self._propagator.extract(carrier), kind=SpanKind.SERVER,
            attributes=attributes(route, exchange), start_time=at(exchange.arrived_s),
        )  # fmt: skip
        for name, seconds in (("admitted", exchange.admitted_s), ("first chunk", exchange.first_s)):
            if seconds is not None:
                span.add_event(name, timestamp=at(seconds))
        if failed(exchange.status):
            span.set_status(StatusCode.ERROR, exchange.status)
        span.end(at(ended_s))

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def make_tracing(endpoint: str) -> Tracing:
    """Traces to an OTLP endpoint over HTTP.

    Raises:
        InputError: OpenTelemetry is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter: Any = OTLPSpanExporter(endpoint=endpoint)
        return Tracing(exporter)
    except ImportError as error:
        message = "otlp_endpoint needs OpenTelemetry, which is not installed: pip install -e '.[otel]', or leave it out"
        raise InputError(message) from error
