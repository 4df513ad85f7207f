import asyncio
import json
from collections.abc import Callable
from typing import TypeVar

import pytest

from loadtests.answers import Outcome
from loadtests.client import Client, base_of
from loadtests.schedule import Request
from stages.errors import EngineError, InputError
from tests.unit.loadtests.asking import request
from tests.unit.server.answers import BODY, DONE, KEEP_ALIVE, ONE, ROLE, TWO, USAGE, pieces_of
from tests.unit.server.replay import CUT, HOLD, Replay, chunked, whole

STREAM = KEEP_ALIVE + ROLE + ONE + TWO + USAGE + DONE
Given = TypeVar("Given")


def with_client(pieces: list[bytes], do: Callable[[Client], Given], timeout_s: float = 5.0) -> tuple[Given, Replay]:
    """Runs a client in a thread, against a replaying engine on loopback."""

    async def run() -> tuple[Given, Replay]:
        async with Replay(pieces).running() as engine:
            client = Client(engine.url + "/v1", "m", {"a": "key-of-a"}, timeout_s)
            try:
                return await asyncio.to_thread(do, client), engine
            finally:
                client.close()

    return asyncio.run(run())


def ask(pieces: list[bytes], *requests: Request, timeout_s: float = 5.0) -> tuple[list[Outcome], Replay]:
    return with_client(pieces, lambda client: [client.ask(r, 0.0) for r in requests], timeout_s)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    (found,), engine = ask(chunked(pieces_of(STREAM, size)), request(tenant="a"))
    assert (found.error, found.completion_tokens, len(found.chunk_s)) == ("", 12, 2)
    assert found.speculation is not None
    assert found.speculation.num_accepted_tokens == 6
    line, headers, body = engine.requests[0]
    assert line == "POST /v1/chat/completions HTTP/1.1"
    assert b"Authorization: Bearer key-of-a" in headers
    assert json.loads(body) == request().body("m")


def test_connections_are_used_again_and_replaced_when_the_server_closed_them() -> None:
    closing = [*chunked([STREAM]), CUT]  # closes after each answer without having said so
    found, engine = ask(closing, *[request(i) for i in range(3)])
    assert [o.error for o in found] == ["", "", ""]
    assert len(engine.requests) == 3
    found, engine = ask(whole(BODY), request(0, stream=False), request(1, stream=False))
    assert [(o.error, o.completion_tokens, o.ttft_s) for o in found] == [("", 12, None)] * 2
    assert b"Authorization" not in engine.requests[0][1]


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (
            whole(b'{"error": {"message": "secret", "type": "rate_limit_error", "code": "slow_down"}}', 429),
            "HTTP 429: rate_limit",
        ),
        (whole(b"<html>", 502), "HTTP 502: without an error object"),
        (chunked([ONE], end=False), "connection: "),
        (chunked([ONE]), "broke off"),
        (whole(b"not json"), "no JSON object"),
        ([CUT], "connection: RemoteDisconnected"),
    ],
)
def test_what_goes_wrong_is_in_the_outcome_without_the_servers_text(pieces: list[bytes], said: str) -> None:
    (found,), _ = ask(pieces, request())
    assert said in found.error
    assert "secret" not in found.error


def test_a_server_that_stops_in_the_middle_is_given_up() -> None:
    (found,), _ = ask([*chunked([ONE], end=False)[:-1], HOLD], request(), timeout_s=0.2)
    assert found.error == "nothing came for 0.2 s"


def test_a_server_that_is_not_there() -> None:
    client = Client("http://127.0.0.1:9", "m", {}, 1.0)  # nobody listens on the discard port
    assert client.ask(request(), 0.0).error == "connection: ConnectionRefusedError"
    with pytest.raises(EngineError, match="not reached"):
        client.first_model()


def test_the_model_is_asked_for() -> None:
    listed = whole(json.dumps({"data": [{"id": "mine"}, {"id": "other"}]}).encode())
    found, engine = with_client(listed, lambda client: client.first_model("k"))
    assert found == "mine"
    assert engine.requests[0][0] == "GET /v1/models HTTP/1.1"
    with pytest.raises(EngineError, match="answered 401"):
        with_client(whole(b"{}", 401), lambda client: client.first_model())
    with pytest.raises(EngineError, match="lists no model"):
        with_client(whole(b'{"data": []}'), lambda client: client.first_model())


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://key@x", "http://x/?a=1"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="must be the address of a server"):
        base_of(url)


def test_addresses() -> None:
    assert base_of("http://127.0.0.1:8000/v1/") == "http://127.0.0.1:8000"
    assert base_of("https://example.org/api/v1") == "https://example.org/api"
