"""The end of `serve`. These tests come last: they end the pair that the tests before them use."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from tests.integration.conftest import Served, alive, descendants, end, get, metric, start_serving, wait_for

pytestmark = pytest.mark.engine


def test_a_port_that_is_taken_is_told_before_the_engine_starts(pair_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start_serving(pair_folder, tmp_path, taken.getsockname()[1])
        assert process.wait(60) == 2
        wanted = f"error: port {taken.getsockname()[1]} on 127.0.0.1 cannot be used"
    assert (tmp_path / "output").read_text().startswith(wanted)
    assert not (tmp_path / "engine.log").exists()


def test_sigterm_lets_a_running_stream_end_and_leaves_no_process(served: Served) -> None:
    served.settle()
    children = descendants(served.process.pid)
    assert len(children) >= 2
    asked = {"model": "reference", "prompt": "x", "max_tokens": 300, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(served.url + "/v1/completions", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as stream:
        stream.readline()
        served.process.send_signal(signal.SIGTERM)
        wait_for("draining", lambda: get(f"{served.url}/ready")[0] == 503)
        assert metric(served.url, "understudy_requests_in_flight") == 1
        assert get(f"{served.url}/v1/models")[0] == 503
        assert stream.read().endswith(b"data: [DONE]\n\n")
    assert served.process.wait(60) == 0, served.output.read_text()
    wait_for("no process is left", lambda: not alive(children))
    assert get(f"{served.url}/health")[0] == 0


def test_an_engine_that_dies_at_start_shows_its_last_lines(pair_folder: Path, tmp_path: Path) -> None:
    """With the real engine: a speculative method that it does not know."""
    serving = json.loads((pair_folder / "serving.json").read_text())
    serving |= {"draft": None, "speculative_config": {"method": "telepathy", "num_speculative_tokens": 2}}
    (tmp_path / "serving.json").write_text(json.dumps(serving))
    process = start_serving(tmp_path, tmp_path)
    try:
        assert process.wait(240) == 3
    finally:
        end(process)
    said = (tmp_path / "output").read_text()
    assert "error: the engine ended with exit code" in said
    assert "telepathy" in said
