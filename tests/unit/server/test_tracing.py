from __future__ import annotations

import builtins
from typing import Any

import pytest
from aiohttp import web

from server import tracing
from server.acceptance import AcceptanceRecord, Missing, Usage
from server.exchange import CLIENT_GONE, STREAM_FAILED, Exchange
from stages.errors import InputError
from tests.unit.server.answers import BODY
from tests.unit.server.conftest import Gateway
from tests.unit.server.replay import whole

pytest.importorskip("opentelemetry.sdk", reason="no OpenTelemetry here: traces are not tried")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def spans_of(exchange: Exchange) -> Any:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    made = tracing.Tracing(exporter)
    made.see("chat", exchange)
    made.close()
    (span,) = exporter.get_finished_spans()
    return span


def test_a_span_has_the_times_and_the_figures_of_its_request() -> None:
    clock = iter([100.0, 110.0])
    exchange = Exchange(lambda: next(clock), served_by=("m", "d"), usage=Usage(4, 12), traceparent=PARENT)
    exchange.admitted_s, exchange.first_s, exchange.ended_s, exchange.status = 100.5, 102.0, 107.0, "200"
    exchange.acceptance = AcceptanceRecord(5, 15, 6)
    span = spans_of(exchange)
    assert (span.name, span.end_time - span.start_time) == ("chat m", pytest.approx(7e9, abs=2000))
    assert [event.name for event in span.events] == ["admitted", "first chunk"]
    assert (format(span.context.trace_id, "032x"), format(span.parent.span_id, "016x")) == tuple(PARENT.split("-")[1:3])
    told = dict(span.attributes)
    assert (told["gen_ai.usage.output_tokens"], told["understudy.num_accepted_tokens"]) == (12, 6)
    assert not any("prompt" in key for key in told)


def test_what_is_not_known_is_not_told() -> None:
    exchange = Exchange(status="404", acceptance=Missing.ABSENT)
    assert set(tracing.attributes("chat", exchange)) == {
        "gen_ai.operation.name",
        "understudy.status",
        "understudy.kind",
    }


@pytest.mark.parametrize(
    ("status", "error"), [("200", False), ("429", False), (CLIENT_GONE, False), ("502", True), (STREAM_FAILED, True)]
)
def test_faults_are_errors_and_refusals_are_not(status: str, error: bool) -> None:
    assert (spans_of(Exchange(status=status)).status.status_code.name == "ERROR") is error


@pytest.mark.anyio
async def test_requests_are_traced_to_the_endpoint(gateway: Gateway) -> None:
    bodies: list[bytes] = []

    async def take(request: web.Request) -> web.Response:
        bodies.append(await request.read())
        return web.Response()

    application = web.Application()
    application.router.add_post("/v1/traces", take)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with gateway(whole(BODY), otlp_endpoint=f"http://127.0.0.1:{port}/v1/traces") as running:
            await running.post("/v1/completions", {"prompt": "secret"}, headers={"traceparent": PARENT})
    finally:
        await runner.cleanup()
    sent = b"".join(bodies)
    assert bytes.fromhex(PARENT.split("-")[1]) in sent
    assert b"text_completion m" in sent
    assert b"secret" not in sent


def test_without_opentelemetry_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install -e '\.\[otel\]'"):
        tracing.make_tracing("http://127.0.0.1:1")
