"""The routes for people: the live page and its figures, a canary's comparison, and what routes there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.door import Door
from server.fleet import Fleet
from server.member import Member
from server.openapi import page
from server.pools import NO_DRAFT
from server.watch import Watch

FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
"""What the live page is made of; nothing of it comes from anywhere else."""
METRICS_LINK = b'<a href="metrics">metrics</a> \xc2\xb7 '

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:",
    "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache",
}  # fmt: skip
UNCACHED = {"cache-control": "no-store"}


class Pages:
    """Handlers over what the gateway has seen.

    Args:
        watch: the figures.
        door: for the phase and the requests under way.
        fleet: for the engines.
    """

    def __init__(self, watch: Watch, door: Door, fleet: Fleet):
        self._watch = watch
        self._door = door
        self._fleet = fleet

    async def live(self, request: Request) -> Response:
        """The figures of the live page."""
        return JSONResponse(self.figures(), headers=UNCACHED)

    def figures(self) -> dict[str, Any]:
        """The same as plain values."""
        models = list(dict.fromkeys(pool.model for pool in self._fleet.pools))
        state = {"models": models, "phase": self._door.phase.value, "requests_in_flight": self._door.running}
        engines = [engine_facts(name, member) for name, member in self._fleet.members.items()]
        return {**state, **self._watch.figures(), "engines": engines}

    async def canary(self, request: Request) -> Response:
        """The canary's comparison; `understudy canary` prints it as a table."""
        return JSONResponse(self._watch.canary_report(), headers=UNCACHED)

    def docs_routes(self, found: dict[str, Any]) -> list[Route]:
        """The OpenAPI document as it is, and as a page."""
        made = JSONResponse(found), Response(page(found), media_type="text/html", headers=HEADERS)
        answers = (("/openapi.json", made[0]), ("/docs", made[1]))
        return [Route(path, _same(answer), methods=["GET"]) for path, answer in answers]

    def page_routes(self, with_metrics: bool) -> list[Route]:
        """The live page: its files and its figures; without a link to the metrics where those are on another port."""
        left_out = b"" if with_metrics else METRICS_LINK
        files = [Route(path, _file(name, kind, left_out), methods=["GET"]) for path, (name, kind) in FILES.items()]
        return [*files, Route("/live.json", self.live, methods=["GET"])]

    def admin_routes(self) -> list[Route]:
        """What belongs to whoever runs the gateway."""
        return [Route("/admin/canary", self.canary, methods=["GET"])]


def engine_facts(name: str, member: Member) -> dict[str, Any]:
    """One engine; not its address, which is nobody's business here."""
    entry = member.entry
    pool = f"{entry.served_model}/{entry.draft or NO_DRAFT}"
    return {"name": name, "pool": pool, "state": member.state, "in_flight": member.health.running}


def _file(name: str, kind: str, left_out: bytes) -> Callable[[Request], Awaitable[Response]]:
    return _same(Response((FOLDER / name).read_bytes().replace(left_out, b""), media_type=kind, headers=HEADERS))


def _same(made: Response) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return made

    return answer
