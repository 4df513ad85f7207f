"""The few questions that are asked of an engine in threads: over direct connections, by threads nobody waits for."""

from __future__ import annotations

import http.client
import json
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stages.errors import EngineError

Result = TypeVar("Result")

NO_ANSWER = (OSError, ValueError, http.client.HTTPException)
"""What comes instead of an answer: nobody there, an address that is none, or something that is not HTTP."""


def open_directly(request: str | urllib.request.Request, timeout_s: float) -> Any:
    """Opens a URL past any proxy that the environment names, as the gateway's own connections do."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(request, timeout=timeout_s)


def served_models(base_url: str, api_key: str | None, timeout_s: float) -> list[str]:
    """The names that an engine gives for what it serves.

    Raises:
        EngineError: it does not say.
    """
    url = f"{base_url}/v1/models"
    request = urllib.request.Request(url)
    if api_key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {api_key}")
    try:
        with open_directly(request, timeout_s) as response:
            return [str(model["id"]) for model in json.load(response)["data"]]
    except (*NO_ANSWER, KeyError, TypeError) as error:
        raise EngineError(f"{url} does not say what it serves: {error}") from error


def start(work: Callable[[], Result]) -> Future[Result]:
    """Begins ``work`` in a thread that does not keep the process from ending before it is done."""
    future: Future[Result] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
