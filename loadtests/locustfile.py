"""For locust itself: ``locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 [--load-settings FILE] [--headless]``.

Users, shape, mix and seed come from the settings file; in an open loop one user sends what arrives. Users take whatever
comes next, unless sorts are named (``locust ... ChatStreamed ChatWhole``): then each user takes its own sort, and the rest is not
sent. For plain and draft beside each other, and for a report, use ``understudy loadtest``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from locust import events

from loadtests.client import Client
from loadtests.prompts import read_prompts
from loadtests.schedule import duration_of, requests_for
from loadtests.session import Session
from loadtests.settings import LoadSettings, Shape
from loadtests.users import AnyUser, ArrivalsUser, ScheduledShape, Work, add_measured_event
from stages.errors import InputError, UnderstudyError
from stages.settings import read_yaml

log = logging.getLogger("loadtests")


class Mixed(AnyUser):
    """Whatever is next."""


class ChatStreamed(AnyUser):
    """Chat, streamed."""

    sort = "chat streamed"


class ChatWhole(AnyUser):
    """Chat, in one piece."""

    sort = "chat whole"


class CompletionsStreamed(AnyUser):
    """Completions, streamed."""

    sort = "completions streamed"


class CompletionsWhole(AnyUser):
    """Completions, in one piece."""

    sort = "completions whole"


class Arrivals(ArrivalsUser):
    """All that arrives in an open loop."""


class Scheduled(ScheduledShape):
    """The settings' shape; each start sends the same again."""

    environment: Any = None
    settings = LoadSettings()

    def reset_time(self) -> None:
        """A new run begins."""
        super().reset_time()
        self.work = None

    def tick(self) -> tuple[int, float] | None:
        """Users now; the first time, the server is asked for its model."""
        if self.work is None:
            try:
                self.environment.work = self.work = self._work()
            except UnderstudyError as error:
                log.error("%s", error)
                self.environment.process_exit_code = error.exit_code
        return super().tick()

    def _work(self) -> Work:
        settings, keys = self.settings, self.settings.keys(os.environ)
        if not self.environment.host:
            raise InputError("no server is given: add --host, e.g. --host http://127.0.0.1:8000")
        client = Client(self.environment.host, settings.model or "", keys, settings.timeout_s)
        if settings.model is None:
            model = client.first_model(next(iter(keys.values()), None))
            client = Client(self.environment.host, model, keys, settings.timeout_s)
        users = [user for user in self.environment.user_classes if issubclass(user, AnyUser)]
        if len(users) > 1 and any(user.sort is None for user in users):
            raise InputError("Mixed takes every request, and leaves none for users of one sort: name it alone")
        sorts = [user.sort for user in users if user.sort]
        requests = requests_for(settings, read_prompts(settings.prompts), settings.loop, self.shape, "locust")
        until_s = duration_of(self.shape) if settings.loop == "closed" else None
        session = Session(requests, until_s, sorts)
        return Work(session, client, settings.max_in_flight, self.environment)


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument(
        "--load-settings", type=str, default="", env_var="LOADTEST_SETTINGS", help="YAML file of LoadSettings"
    )
    parser.add_argument(
        "--records", type=str, default="", env_var="LOADTEST_RECORDS", help="JSONL file for each outcome"
    )


def _prepare(environment: Any, shape: Scheduled, settings: LoadSettings) -> None:
    """Users who take everything; or of the sorts that are named, each with its share, those that have something to do."""
    shape.environment, shape.settings, shape.loop = environment, settings, settings.loop
    shape.shape, shape.objective = settings.shape or Shape(), settings.objective
    requests = requests_for(settings, read_prompts(settings.prompts), "closed", shape.shape, "locust")
    count = {name: sum(request.name == name for request in requests) for name in {r.name for r in requests}}
    for user in environment.user_classes:
        if issubclass(user, AnyUser) and user.sort:
            user.weight = count.get(user.sort, 0)
    named = environment.parsed_options.user_classes
    kinds: Any = ArrivalsUser if settings.loop == "open" else AnyUser if named else Mixed
    environment.user_classes[:] = [
        user for user in environment.user_classes if issubclass(user, kinds) and user.weight > 0
    ]
    if not environment.user_classes:
        raise InputError(
            f"none of the users given has anything to do in a {settings.loop} loop; see kinds, stream and loop"
        )


@events.init.add_listener
def _init(environment: Any, runner: Any, **_: Any) -> None:
    options = environment.parsed_options
    file = Path(options.load_settings) if options.load_settings else None
    try:
        if getattr(options, "master", False) or getattr(options, "worker", False):
            raise InputError("--master, --worker and --processes would each send the whole schedule: run one process")
        settings = read_yaml(file, LoadSettings).resolved() if file else LoadSettings()
        environment.stop_timeout = settings.timeout_s
        _prepare(environment, environment.shape_class, settings)
    except UnderstudyError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    add_measured_event(environment)
    if options.records:
        _record(environment, Path(options.records))


def _record(environment: Any, file: Path) -> None:
    """Writes each outcome as a line; no prompt and no answer stands in it."""
    sink = file.open("w", encoding="utf-8")

    def write(context: dict[str, Any], **_: Any) -> None:
        if "outcome" in context:
            sink.write(json.dumps(asdict(context["outcome"])) + "\n")
            sink.flush()

    environment.events.request.add_listener(write)
    environment.events.quitting.add_listener(lambda **_: sink.close())
