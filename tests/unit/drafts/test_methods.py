"""Methods that remember answers are made to forget them, and nothing else is asked of an engine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import drafts.methods as module
from drafts.methods import NGRAM, SUFFIX, EngineOptions, Method, Serving, _engine, draft_method, own_name, wants_suffix
from server.in_engine.suffix_cache import SuffixCacheExtension
from server.launching import launch_program
from stages.errors import EngineError, InputError


@pytest.fixture
def engine() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    """(address, what it was asked) of a server that says yes to everything."""
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_suffix_decoding_learns() -> None:
    assert Method("suffix", SUFFIX).learns
    assert not any(method.learns for method in (Method("plain"), Method("ngram", NGRAM), draft_method(__file__, 2)))  # type: ignore[arg-type]


def test_suffix_decoding_is_measured_where_it_is_installed_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for installed in (True, False):
        monkeypatch.setattr(module, "suffix_installed", lambda installed=installed: installed)
        assert wants_suffix(None) is installed
        assert wants_suffix(False) is False
    with pytest.raises(InputError, match="run 'make setup-suffix'") as error:
        wants_suffix(True)
    assert "\n" not in str(error.value)


def test_a_pairs_own_method_has_the_name_of_what_proposes() -> None:
    assert [own_name(config) for config in (SUFFIX, {"method": "draft_model"}, None)] == ["suffix", "draft", "draft"]


def test_an_engine_is_asked_by_the_name_of_the_extensions_method(
    engine: tuple[str, list[tuple[str, dict[str, str]]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past a proxy that the environment names."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    url, asked = engine
    Serving({}, {"suffix": url}).forget()
    assert asked == [("/collective_rpc", {"method": "forget_suffixes"})]
    assert callable(SuffixCacheExtension.forget_suffixes)


def test_an_engine_that_does_not_forget_is_named() -> None:
    with pytest.raises(EngineError, match="'suffix' did not empty its cache of answers"):
        Serving({}, {"suffix": "http://127.0.0.1:9"}).forget()


def test_a_cache_is_replaced_by_an_empty_one_of_its_kind() -> None:
    class Cache:
        def __init__(self, max_tree_depth: int, max_cached_requests: int):
            self.max_tree_depth, self.max_cached_requests = max_tree_depth, max_cached_requests
            self.seen: list[int] = []

    extension = SuffixCacheExtension()
    old = Cache(24, 100)
    old.seen.append(1)
    extension.model_runner = SimpleNamespace(drafter=SimpleNamespace(suffix_cache=old))
    extension.forget_suffixes()
    new = extension.model_runner.drafter.suffix_cache
    assert (new.max_tree_depth, new.max_cached_requests, new.seen) == (24, 100, [])


def test_a_method_can_serve_another_model_than_the_target(tmp_path: Path) -> None:
    options = EngineOptions(64, 2)
    for method, model in ((Method("plain"), "target"), (Method("ragged", model=Path("pruned")), "pruned")):
        engine = _engine(Path("target"), method, tmp_path, options, launch_program)
        assert engine.settings.model == Path(model)
        assert engine.settings.speculative_config is None
