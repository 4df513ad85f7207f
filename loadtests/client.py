"""Sends requests over HTTP and reads answers as they come; works under gevent's patches and without them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from loadtests.answers import Outcome, Reading, describe_error
from loadtests.schedule import Request
from loadtests.sse import Events
from stages.errors import EngineError, InputError

PIECE = 65536
SHORT_TIMEOUT_S = 10.0


class TooSlow(Exception):
    """An answer took longer than it may."""


def base_of(url: str) -> str:
    """A server's address without ``/v1`` at its end.

    Raises:
        InputError: it is no http or https address.
    """
    parts = urlsplit(url.strip().rstrip("/"))
    try:
        valid = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or parts.query or parts.username:
        raise InputError(
            f"{url}: must be the address of a server, e.g. http://127.0.0.1:8000; keys go with the tenants"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('/v1')}"


class Client:
    """One server; connections are kept and used again.

    Args:
        keys: API keys by tenant.
        now: seconds on a clock that only goes forward.
    """

    def __init__(
        self,
        url: str,
        model: str,
        keys: Mapping[str, str],
        timeout_s: float,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._parts = urlsplit(base_of(url))
        self._model, self._keys, self._timeout_s, self._now = model, keys, timeout_s, now
        self._idle: list[HTTPConnection] = []

    def ask(self, request: Request, began_s: float) -> Outcome:
        """Sends a request and reads its answer; what goes wrong is in the outcome.

        Args:
            began_s: the turn's beginning on the clock; times are since then.
        """
        sent_s = self._now() - began_s
        reading = Reading(request, sent_s if request.at_s is None else request.at_s, sent_s)
        try:
            connection, response = self._post(request)
            try:
                kept = self._read(response, reading, began_s)
            except BaseException:
                connection.close()
                raise
            if kept:
                self._idle.append(connection)
            else:
                connection.close()
        except TooSlow:
            reading.error = f"took longer than {self._timeout_s:g} s"
        except TimeoutError:
            reading.error = f"nothing came for {self._timeout_s:g} s"
        except (OSError, HTTPException, ValueError) as error:
            reading.error = f"connection: {type(error).__name__}"
        return reading.outcome(self._now() - began_s)

    def _post(self, request: Request) -> tuple[HTTPConnection, HTTPResponse]:
        """Sends on a kept connection where there is one; if the server has closed that meanwhile, on a new one."""
        body = json.dumps(request.body(self._model), separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
        if key := self._keys.get(request.tenant):
            headers["Authorization"] = f"Bearer {key}"
        while True:
            kept = bool(self._idle)
            connection = self._idle.pop() if kept else self._connect()
            try:
                connection.request("POST", self._parts.path + request.path, body, headers)
                return connection, connection.getresponse()
            except (ConnectionError, HTTPException):
                connection.close()
                if not kept:
                    raise
            except BaseException:
                connection.close()
                raise

    def _connect(self) -> HTTPConnection:
        made = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
        return made(self._parts.netloc, timeout=self._timeout_s)

    def _read(self, response: HTTPResponse, reading: Reading, began_s: float) -> bool:
        """Reads to the end; gives whether the connection can be used again."""
        if response.status != 200:
            reading.error = f"HTTP {response.status}: {_error_of(response.read(PIECE))}"
            return response.isclosed() and not response.will_close
        if "event-stream" not in response.headers.get("Content-Type", ""):
            reading.note_whole(response.read(), self._now() - began_s)
            return not response.will_close
        events = Events()
        while piece := response.read1(PIECE):
            now_s = self._now() - began_s
            if now_s - reading.sent_s > self._timeout_s:
                raise TooSlow
            for data in events.feed(piece):
                reading.note(data, now_s)
        return not response.will_close

    def first_model(self, key: str | None = None) -> str:
        """The first model that the server offers.

        Raises:
            EngineError: it cannot be reached, refuses, or offers none.
        """
        url = f"{self._parts.scheme}://{self._parts.netloc}{self._parts.path}/v1/models"
        connection = self._connect()
        connection.timeout = SHORT_TIMEOUT_S
        try:
            connection.request(
                "GET", self._parts.path + "/v1/models", headers={"Authorization": f"Bearer {key}"} if key else {}
            )
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise EngineError(f"{url} answered {response.status} ({_error_of(body)}); does a tenant need a key?")
            return str(json.loads(body)["data"][0]["id"])
        except (OSError, HTTPException) as error:
            raise EngineError(f"{url}: not reached ({error}); is the server up?") from error
        except (ValueError, LookupError, TypeError) as error:
            raise EngineError(f"{url} lists no model; give its name with --set model=NAME") from error
        finally:
            connection.close()

    def close(self) -> None:
        """Closes the kept connections."""
        while self._idle:
            with suppress(OSError):
                self._idle.pop().close()


def _error_of(body: bytes) -> str:
    try:
        return describe_error(json.loads(body))
    except ValueError:
        return "without an error object"
