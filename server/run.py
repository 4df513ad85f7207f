"""Serving: the gateway and, unless it runs elsewhere, the engine; both come up together and go down together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from socket import socket as Socket
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI

from server.access import Access
from server.admin import create_admin_app
from server.app import VERSION, Gateway, create_app, make_door
from server.door import Door, Phase
from server.engine import LocalEngine, answers, bind
from server.engine_command import EngineSettings
from server.engine_list import EngineEntry
from server.fleet import Fleet
from server.http_limits import limited_protocol
from server.intake import check_name, check_sampling
from server.pair import Pair, engine_settings
from server.reloading import Reloaded, reload
from server.settings import GatewaySettings
from stages.errors import EngineError, InputError
from stages.progress import log

WATCH_S = 0.5
BACKLOG = 2048
POLL_S = 0.05
REACH_S = 1.0
DEATH_S = 1.0
"""How long an engine that stopped answering gets to be found dead."""
Loop = asyncio.AbstractEventLoop
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Reread = Callable[[], GatewaySettings]


class Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: what a signal means is decided here."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone."""
        yield


def make_server(settings: GatewaySettings, door: Door | None = None, fleet: Fleet | None = None) -> Server:
    """uvicorn with the gateway in it, to be served on sockets that are bound already."""
    return _server(create_app(settings, door, fleet), settings, lifespan="on")


def make_admin_server(gateway: Gateway) -> Server:
    """uvicorn with the routes of the admin port, beside a gateway."""
    return _server(create_admin_app(gateway, VERSION), gateway.settings, lifespan="off")


def _server(app: FastAPI, settings: GatewaySettings, lifespan: Literal["on", "off"]) -> Server:
    config = uvicorn.Config(
        app, http=limited_protocol(settings.max_header_bytes, settings.header_timeout_s), log_config=None,
        access_log=False, server_header=False, proxy_headers=False, ws="none", lifespan=lifespan,
        timeout_graceful_shutdown=5,
    )  # fmt: skip
    return Server(config)


def gateway_of(server: Server) -> Gateway:
    """The gateway in a server that `make_server` made."""
    app: Any = server.config.app
    gateway: Gateway = app.state.gateway
    return gateway


def gateway_settings(pair: Pair, settings: GatewaySettings) -> GatewaySettings:
    """The gateway's settings with a pair's names and expected figures filled in."""
    expected = pair.serving.expected
    return settings.model_copy(
        update={
            "served_model_name": pair.serving.served_model_name,
            "draft_name": pair.draft_name,
            "expected_acceptance_rate": expected.acceptance_rate if expected else None,
            "expected_mean_acceptance_length": expected.mean_acceptance_length if expected else None,
            "expected_speedup": expected.speedup if expected else None,
        }
    )


async def _reach(url: str) -> None:
    """Waits for an engine that runs elsewhere, for as long as it takes."""
    said = False
    while not await asyncio.to_thread(answers, url):
        if not said:
            log(f"engine: {url} does not answer yet; waiting")
        said = True
        await asyncio.sleep(REACH_S)


def settle_memory() -> None:
    """Takes all objects there are out of garbage collection: modules and routes stay, and a full pass over them takes 40 ms.

    Every answer would wait as long, each time that requests have left enough objects behind.
    """
    gc.collect()
    gc.freeze()


class Service:
    """One run of `serve`.

    Args:
        settings: the gateway's; ``engine_url`` is filled in here when there is a local engine.
        engine: a local engine that has not been started, or None.
        check_sampling: whether the engine must pass the sampling check before requests are let in.
        reread: reads the settings again, on SIGHUP; None: SIGHUP changes nothing.
    """

    def __init__(
        self, settings: GatewaySettings, engine: LocalEngine | None, check_sampling: bool, reread: Reread | None = None
    ):
        self._settings = settings
        self._engine = engine
        self._check_sampling = check_sampling
        self._door = make_door(settings, Phase.STARTING)
        self._fleet: Fleet
        self._passed: set[str] = set()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reread = reread
        self._server: Server | None = None

    async def run(self) -> None:
        """Serves until a signal comes, or raises what ended it before."""
        with bind(self._settings.host, self._settings.port) as socket, self._admin_socket() as admin, self._signals():
            socket.listen(BACKLOG)
            host, port = socket.getsockname()[:2]
            try:
                self._start_engine()
                self._fleet = Fleet(self._settings, self._intake if self._settings.engines else None)
                server = self._server = make_server(self._settings, self._door, self._fleet)
                gateway = gateway_of(server)
                gateway.reload_settings = self._reload_settings
                serving = asyncio.create_task(server.serve(sockets=[socket]))
                log(f"gateway: http://{host}:{port} (answers 503 until the engine is ready)")
                async with self._administering(gateway, admin):
                    try:
                        await self._live()
                    finally:
                        await self._drain(server)
                        await serving
            finally:
                if self._engine is not None:
                    log("engine: stopping")
                    await asyncio.to_thread(self._engine.stop)

    def _admin_socket(self) -> contextlib.AbstractContextManager[Socket | None]:
        port = self._settings.admin_port
        return contextlib.nullcontext() if port is None else bind(self._settings.admin_host, port)

    @contextlib.asynccontextmanager
    async def _administering(self, gateway: Gateway, socket: Socket | None) -> AsyncIterator[None]:
        """Serves the admin port, where there is one, until all else has ended."""
        if socket is None:
            yield
            return
        socket.listen(BACKLOG)
        server = make_admin_server(gateway)
        serving = asyncio.create_task(server.serve(sockets=[socket]))
        host, port = socket.getsockname()[:2]
        log(f"gateway: metrics and /admin on http://{host}:{port}")
        try:
            yield
        finally:
            server.should_exit = True
            await serving

    def _start_engine(self) -> None:
        if self._engine is not None:
            self._engine.start()
            self._settings = self._settings.model_copy(update={"engine_url": self._engine.url})
            log(f"engine: {self._engine.url}, log in {self._engine.settings.log_file}")

    async def _live(self) -> None:
        """From the engine's start to the first signal.

        Raises:
            EngineError: the engine died or never came.
            CheckFailed: it does not sample as it must.
        """
        stopped = asyncio.create_task(self._stop.wait())
        working = asyncio.create_task(self._bring_up_and_watch())
        try:
            await asyncio.wait({stopped, working}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            if self._engine is not None and not working.done() and self._door.phase is Phase.STARTING:
                await asyncio.to_thread(self._engine.stop)  # also wakes the thread that waits for it
            for task in (stopped, working):
                task.cancel()
            await asyncio.gather(stopped, working, return_exceptions=True)

    async def _bring_up_and_watch(self) -> None:
        served = await (self._bring_up_several() if self._settings.engines else self._bring_up())
        settle_memory()
        self._door.phase = Phase.SERVING
        log(f"gateway: ready, serving {served}")
        while True:
            await asyncio.sleep(WATCH_S)
            if self._engine is not None:
                self._engine.check_alive()

    async def _bring_up(self) -> str:
        """Waits for the one engine and checks it; what it serves, in words."""
        url = self._settings.engine_url
        assert url is not None
        if self._engine is not None:
            await asyncio.to_thread(self._engine.wait_ready)
        else:
            await _reach(url)
        if self._check_sampling:
            await self._check()
        if self._engine is None:
            self._fleet.intake = self._intake  # from now on: an engine elsewhere may come back as another one
        return f"{self._settings.served_model_name} (draft: {self._settings.draft_name or 'none'})"

    async def _bring_up_several(self) -> str:
        """Waits for the first engine that is taken in; the others follow as they answer."""
        log(f"engines: waiting for the first of {', '.join(self._fleet.members)}")
        await self._fleet.until_one_is_fit()
        return f"{', '.join(pool.name for pool in self._fleet.pools)}"

    async def _intake(self, entry: EngineEntry) -> None:
        """What an engine must pass before it gets requests: it serves the model and, with a draft, samples rightly."""
        if self._settings.engines:
            await check_name(entry, self._settings)
        if self._check_sampling and entry.draft is not None:
            await check_sampling(entry, self._settings, is_back=entry.name in self._passed)
            self._passed.add(entry.name)

    async def _check(self) -> None:
        """The sampling check; an engine that dies of it is told of with its last lines."""
        try:
            entry = self._settings.entries()[0]
            await check_sampling(entry, self._settings)
            self._passed.add(entry.name)
        except EngineError as error:
            await self._find_dead("while its sampling was checked")
            name = self._settings.served_model_name
            hint = "give its name with --model, or serve without the check with --allow-faulty-sampling"
            raise EngineError(f"the sampling of model {name!r} cannot be checked ({error}); {hint}") from error

    async def _find_dead(self, when: str) -> None:
        """Raises EngineError with the last lines of a local engine that has just died."""
        deadline = time.monotonic() + DEATH_S
        while self._engine is not None and time.monotonic() < deadline:
            self._engine.check_alive(when)
            await asyncio.sleep(POLL_S)

    async def _drain(self, server: Server) -> None:
        """Takes no more requests and lets the running and queued ones end; a second signal cuts them."""
        await self._leave()
        self._door.phase = Phase.DRAINING
        drain_s = self._settings.drain_s
        if self._door.running:
            log(f"gateway: up to {drain_s:g} s for {self._door.running} running requests; Ctrl-C again cuts them")
        for _ in range(int(drain_s / POLL_S)):
            if not self._door.running or self._hurry.is_set():
                break
            await asyncio.sleep(POLL_S)
        self._door.cut.set()
        server.should_exit = True

    async def _leave(self) -> None:
        """After a signal, says that it is not ready for as long as others need to notice."""
        if self._stop.is_set() and self._settings.leave_s and self._door.phase is Phase.SERVING:
            self._door.phase = Phase.LEAVING
            log(f"gateway: not ready any more, still accepts requests for {self._settings.leave_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self._settings.leave_s)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number in (*SIGNALS, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def _on_hangup(self) -> None:
        """Reads the tenants and the settings again; without files there is nothing to read, and nothing ends."""
        if self._server is None:
            return
        gateway = gateway_of(self._server)
        if gateway.access.path is not None:
            gateway.access.reload()
        self._reload_settings()

    def _reload_settings(self) -> Reloaded | None:
        """What came of it; None where there is no file to read."""
        if self._reread is None or self._server is None:
            return None
        reread, own = self._reread, {"engine_url": self._settings.engine_url} if self._engine is not None else {}
        found = reload(self._settings, lambda: reread().model_copy(update=own), log)
        if found.changed:
            self._settings = found.settings
            gateway_of(self._server).watch.reload(found.settings)
        return found


def loop_factory() -> Callable[[], Loop]:
    """Makes uvloop's event loop, which takes a part of each request's time away, where that is installed; else asyncio's."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def note_progress(seconds: float, line: str) -> None:
    """A line of progress while an engine starts."""
    log(f"engine: starting, {seconds:.0f} s; {line[-100:]}")


def serve(
    settings: GatewaySettings,
    pair: Pair | None = None,
    log_file: Path | None = None,
    allow_faulty_sampling: bool = False,
    make_engine: Callable[[EngineSettings], LocalEngine] = lambda settings: LocalEngine(settings, note_progress),
    reread: Reread | None = None,
) -> None:
    """Serves until Ctrl-C or SIGTERM, then ends gateway and engine.

    Args:
        settings: with ``engine_url`` for an engine that runs elsewhere, or with ``engines`` for several.
        pair: what a local engine serves; needed without ``engine_url``, and optional beside it (names, figures).
        log_file: the local engine's log; needed with a local engine.
        allow_faulty_sampling: leave out the sampling check, which engines with a draft and engines elsewhere must pass.
        make_engine: how a local engine is made.
        reread: reads the settings again, on SIGHUP.

    Raises:
        InputError: port taken, a bad tenants file, or settings that no engine can be started with.
        EngineError: the engine died.
        CheckFailed: it does not sample as its target does.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    # of bad requests uvicorn would warn from the event loop, and whoever reads the log slowly would hold up every stream
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    fill_in = partial(gateway_settings, pair) if pair is not None else lambda settings: settings
    settings = fill_in(settings).checked()
    Access(settings)  # a bad tenants file is said now, not when an engine has been started
    engine = None
    if settings.engines and pair is not None:
        raise InputError("'engines' and a pair exclude each other: name the pair at its engine, as 'pair'")
    if settings.engine_url is None and not settings.engines:
        if pair is None or log_file is None:
            raise InputError("nothing to serve: give a pair, the URL of an engine, or a list of engines")
        engine = make_engine(engine_settings(pair, log_file))
    check = not allow_faulty_sampling and (settings.draft_name is not None or engine is None)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(settings, engine, check, (lambda: fill_in(reread())) if reread else None))


async def _serve(settings: GatewaySettings, engine: LocalEngine | None, check: bool, reread: Reread | None) -> None:
    await Service(settings, engine, check, reread).run()
