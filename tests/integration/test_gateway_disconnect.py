"""Clients on raw sockets that leave: the engine must stop working for them at once."""

from __future__ import annotations

import json
import socket

import pytest

from tests.integration.conftest import Served, metric, wait_for
from tests.integration.serve_pair import MAX_NUM_SEQS

pytestmark = pytest.mark.engine

MAX_TOKENS = 480


def send(served: Served, stream: bool) -> socket.socket:
    """A request that would take the engine many seconds."""
    asked = {"model": "reference", "prompt": "x", "max_tokens": MAX_TOKENS, "ignore_eos": True, "temperature": 0}
    body = json.dumps({**asked, "stream": stream})
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def generated(served: Served) -> float:
    return metric(served.engine_url, "vllm:generation_tokens_total")


@pytest.mark.parametrize(
    ("stream", "read"),
    [(True, 0), (True, 400), (False, 0)],
    ids=["before the first byte", "mid-stream", "not streaming"],
)
def test_the_engine_stops_when_the_client_leaves(served: Served, stream: bool, read: int) -> None:
    served.settle()
    gone = metric(served.url, "understudy_requests_total", status="client_gone")
    cancelled = metric(served.url, "understudy_acceptance_records_missing_total", reason="cancelled")
    tokens = generated(served)
    connection = send(served, stream)
    if read:
        assert connection.recv(read, socket.MSG_WAITALL).startswith(b"HTTP/1.1 200")
    else:
        wait_for("the engine works on it", lambda: metric(served.engine_url, "vllm:num_requests_running") == 1)
    assert metric(served.url, "understudy_requests_in_flight") == 1
    connection.close()
    served.settle()
    assert metric(served.url, "understudy_requests_total", status="client_gone") == gone + 1
    assert metric(served.url, "understudy_acceptance_records_missing_total", reason="cancelled") == cancelled + 1
    assert generated(served) - tokens < MAX_TOKENS, "the engine went on to the end"


def test_clients_that_leave_the_engines_queue(served: Served) -> None:
    served.settle()
    gone = metric(served.url, "understudy_requests_total", status="client_gone")
    connections = [send(served, stream=index % 2 == 0) for index in range(MAX_NUM_SEQS + 4)]
    wait_for("all are under way", lambda: metric(served.url, "understudy_requests_in_flight") == MAX_NUM_SEQS + 4)
    wait_for("some are queued", lambda: metric(served.engine_url, "vllm:num_requests_waiting") > 0)
    for connection in connections:
        connection.close()
    served.settle()
    assert metric(served.url, "understudy_requests_total", status="client_gone") == gone + MAX_NUM_SEQS + 4
