from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from server.canary_table import ask, render
from stages.errors import EngineError, InputError

PART = {"value": 2.0, "low": 1.9, "high": 2.1, "requests": 50}
FEW = {"value": 0.01, "low": None, "high": None, "requests": 3}
REPORT = {
    "canary": {"pool": None, "draft": "new", "share": 0.1}, "main": ["m/d"], "pools": ["m/new"],
    "rows": [{
        "kind": "plain",
        "mean_acceptance_length": {"main": PART, "canary": PART, "difference": PART, "verdict": "better"},
        "tpot_s": {"main": FEW, "canary": None, "difference": None, "verdict": "too few requests"},
    }],
}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    report: dict = REPORT

    def do_GET(self) -> None:
        asked = self.path == "/admin/canary" and self.headers["authorization"] == "Bearer ours"
        self.send_response(200 if asked else 401)
        self.end_headers()
        self.wfile.write(json.dumps(self.report).encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_running_gateway_is_asked_and_its_comparison_shown(url: str) -> None:
    console = Console(file=io.StringIO(), width=160)
    render(ask(url + "/", "ours"), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "m/new (share 0.1) beside m/d" in shown
    assert "2.00 [1.90, 2.10] (n=50)" in shown
    assert "10.00 (n=3)" in shown
    assert "too few requests" in shown


def test_what_goes_wrong_is_said_in_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="answered 401"):
        ask(url)
    with pytest.raises(EngineError, match="no answer"):
        ask("http://127.0.0.1:1")
    monkeypatch.setattr(Handler, "report", {"canary": None})
    with pytest.raises(InputError, match="no canary there"):
        ask(url, "ours")
