"""Starts services again that were killed: ``keeper.py SERVICE...``, in a container with Docker's socket (compose.keeper.yaml).

Docker takes ``docker kill`` for meant, so no restart policy brings a killed container back. What Docker tells of a ``stop`` (also
compose's ``stop``, ``down`` and ``restart``) has a "stop" beside the "die", and is left alone; so is what Docker restarts itself.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SOCKET = os.environ.get("DOCKER_SOCKET", "/var/run/docker.sock")
WAIT_S = 3.0
"""After an end: time for Docker to say that it was a stop, or to start the container itself."""


class Connection(http.client.HTTPConnection):
    """HTTP over Docker's socket."""

    def connect(self) -> None:
        """Opens the socket in the place of a TCP connection."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def ask(method: str, path: str) -> tuple[int, Any]:
    """Status and answer of Docker's API."""
    connection = Connection("docker")
    try:
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if body else None
    finally:
        connection.close()


def events(project: str) -> Iterator[dict[str, Any]]:
    """Ends and stops of the project's containers, as they happen."""
    wanted = {"type": ["container"], "event": ["die", "stop"], "label": [f"com.docker.compose.project={project}"]}
    connection = Connection("docker")
    connection.request("GET", "/events?" + urllib.parse.urlencode({"filters": json.dumps(wanted)}))
    for line in connection.getresponse():
        yield json.loads(line)


class Keeper:
    """Tells the killed from the stopped.

    Args:
        services: which are started again.
        later: runs a function with a container's id once ``WAIT_S`` are over.
        start: starts a container unless it runs.
    """

    def __init__(
        self, services: Iterable[str], later: Callable[[Callable[[str], None], str], None], start: Callable[[str], None]
    ) -> None:
        self._services, self._later, self._start = frozenset(services), later, start
        self._died: set[str] = set()

    def see(self, event: dict[str, Any]) -> None:
        """Takes one event."""
        container = event["Actor"]["ID"]
        if event["Action"] == "stop":
            self._died.discard(container)
        elif event["Actor"]["Attributes"].get("com.docker.compose.service") in self._services:
            self._died.add(container)
            self._later(self._after, container)

    def _after(self, container: str) -> None:
        if container in self._died:
            self._died.discard(container)
            self._start(container)


def start(container: str) -> None:
    """Starts what neither runs nor is about to."""
    status, found = ask("GET", f"/containers/{container}/json")
    if status == 200 and not (found["State"]["Running"] or found["State"]["Restarting"]):
        print(f"keeper: {found['Name'][1:]} was killed; starting it", flush=True)
        ask("POST", f"/containers/{container}/start")


def later(do: Callable[[str], None], container: str) -> None:
    """On a thread of its own, so that events go on being read."""
    timer = threading.Timer(WAIT_S, do, (container,))
    timer.daemon = True
    timer.start()


def main() -> None:
    """Until Docker ends the stream of events; Docker then starts the keeper again."""
    _, own = ask("GET", f"/containers/{socket.gethostname()}/json")
    keeper = Keeper(sys.argv[1:], later, start)
    for event in events(own["Config"]["Labels"]["com.docker.compose.project"]):
        keeper.see(event)


if __name__ == "__main__":
    main()
