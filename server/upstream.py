"""The engine's side of a request: the only file that speaks HTTP to it (aiohttp)."""

from __future__ import annotations

import json

import aiohttp

from server.engine_list import EngineEntry
from server.errors import Refusal, is_error_object
from server.health import Probe
from server.settings import GatewaySettings

KEEP_ALIVE_S = 3.0
"""Shorter than the engine's own 5 s, so that no request goes out on a connection the engine is just closing."""

PASSED_HEADERS = ("content-type", "retry-after", "metadata")
"""Headers of the engine's answer that the client gets; the last says how to read embeddings that come as bytes."""


NOT_IMPLEMENTED = 501


KEY_REFUSED = (401, 403)
"""What an engine says that does not take the gateway's own key; no request is to blame for it."""


def is_failure(status: int) -> bool:
    """Whether a status says that the engine is at fault; 501 only says what it cannot do (vLLM's word for it)."""
    return status in KEY_REFUSED or (status >= 500 and status != NOT_IMPLEMENTED)


class EngineFailed(Exception):
    """The engine gave no usable answer: it broke off, said that it is at fault, or sent what cannot be read."""


class Upstream:
    """Opens requests to one engine. Nothing of the client's headers goes along, its ``Authorization`` least of all.

    Args:
        entry: which engine.
        settings: how long is waited.
    """

    def __init__(self, entry: EngineEntry, settings: GatewaySettings):
        self._url = entry.url
        self._api_key = entry.api_key or settings.engine_api_key
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Makes the connection pool; it has no limit of its own, because the gateway's door is the limit."""
        settings = self._settings
        timeout = aiohttp.ClientTimeout(
            total=None, connect=settings.connect_timeout_s, sock_read=settings.engine_silence_s
        )
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers(), auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),  # what one client's answer sets must not go along with another's request
        )  # fmt: skip

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(self, method: str, path: str, body: bytes | None = None) -> aiohttp.ClientResponse:
        """Sends a request and waits for the head of the answer; `finish` belongs to it.

        Raises:
            Refusal: 502, 503 or 504 when there is no answer.
        """
        assert self._session is not None
        wait_s = self._settings.retry_after_s
        try:
            return await self._session.request(method, self._url + path, data=body, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            message = "the engine cannot be reached; try again later"
            raise Refusal(503, message, "engine_unreachable", retry_after_s=wait_s) from error
        except TimeoutError as error:
            message = f"the engine was silent for {self._settings.engine_silence_s:g} s"
            raise Refusal(504, message, "engine_timeout") from error
        except (aiohttp.ServerDisconnectedError, OSError) as error:
            message = "the engine closed the connection without an answer; try again later"
            raise Refusal(503, message, "engine_failed", retry_after_s=wait_s) from error
        except aiohttp.ClientError as error:
            raise Refusal(502, "the engine's answer cannot be read", "engine_failed") from error

    async def probe(self) -> Probe:
        """Asks the engine whether it is well."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=self._settings.probe_timeout_s)
        try:
            async with self._session.get(f"{self._url}/health", timeout=timeout) as response:
                return Probe.WELL if response.status == 200 else Probe.GONE
        except TimeoutError:
            return Probe.SILENT
        except (aiohttp.ClientError, OSError):
            return Probe.GONE

    async def generates(self, model: str, timeout_s: float) -> bool:
        """True when the engine generates one token in time, or says that it has no such route or model: nothing is known then."""
        assert self._session is not None
        body = json.dumps({"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0})
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.post(f"{self._url}/v1/completions", data=body, timeout=timeout) as response:
                return response.status < 500
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    def _headers(self) -> dict[str, str]:
        headers = {"accept-encoding": "identity", "content-type": "application/json", "user-agent": "understudy"}
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key.get_secret_value()}"
        return headers


async def read_some(response: aiohttp.ClientResponse) -> bytes:
    """The next bytes of an answer as they come; empty at its end.

    Raises:
        EngineFailed: when the answer breaks off.
    """
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineFailed(type(error).__name__) from error


async def read_all(response: aiohttp.ClientResponse) -> bytes:
    """The whole body of an answer that is not a stream.

    Raises:
        EngineFailed: when the answer breaks off.
    """
    try:
        return await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EngineFailed(type(error).__name__) from error


def finish(response: aiohttp.ClientResponse) -> None:
    """Gives the connection back; or closes it at once when the answer has not ended, which makes the engine stop."""
    if response.content.at_eof():
        response.release()
    else:
        response.close()


def passed_headers(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The headers of the engine's answer that the client gets."""
    return {name: response.headers[name] for name in PASSED_HEADERS if name in response.headers}


def is_stream(response: aiohttp.ClientResponse) -> bool:
    """True for an answer in events."""
    return response.status == 200 and response.content_type == "text/event-stream"


def refusal_from(status: int, body: bytes, path: str, retry_after_s: int) -> Refusal | None:
    """What to say instead of an engine's error that is not in OpenAI's shape; None when the body can go as it is."""
    if status < 300 or (is_error_object(body) and status not in KEY_REFUSED):
        return None
    if status == 404:
        return Refusal(404, f"the engine has no {path}", "not_supported")
    if status in KEY_REFUSED:
        return Refusal(502, "the engine refused the gateway's own key", "engine_refused_gateway")
    if status in (429, 503):
        message = "the engine takes no more requests; try again later"
        return Refusal(status, message, "engine_busy", retry_after_s=retry_after_s)
    if status == NOT_IMPLEMENTED:
        return Refusal(status, f"the engine cannot do what this request to {path} asks for", "not_supported")
    if 400 <= status < 500:
        return Refusal(status, f"the engine refused the request with status {status}", "engine_refused")
    return Refusal(502, f"the engine failed with status {status}", "engine_failed")
