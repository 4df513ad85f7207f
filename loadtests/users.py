"""Locust's users, shape and events. Importing it puts gevent's patches in place: only in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gevent
from gevent.pool import Pool
from locust import LoadTestShape, User, task
from locust.env import Environment
from locust.event import EventHook, Events
from locust.exception import StopUser

from loadtests.answers import Outcome
from loadtests.client import Client
from loadtests.figures import Result
from loadtests.schedule import Request, Turn, dispatch, duration_of
from loadtests.session import Session, broken_step, users_at
from loadtests.settings import LoadSettings, Objective, Shape

POLL_S = 0.01


@dataclass
class Work:
    """What the users of one environment do."""

    session: Session
    client: Client
    max_in_flight: int
    environment: Environment

    def carry_out(self, request: Request) -> None:
        """Sends a request, and fires locust's events about what came of it."""
        announce(self.environment, self.session.carry_out(request, self.client.ask))


def announce(environment: Environment, outcome: Outcome) -> None:
    """Fires ``request`` (end to end, with the outcome as context), then ``measured`` for each figure that it has.

    ``measured`` has the arguments ``name``, ``figure``, ``value`` (milliseconds, or per cent) and ``outcome``.
    """
    environment.events.request.fire(
        request_type="POST", name=outcome.name, response_time=outcome.e2e_s * 1000,
        response_length=outcome.completion_tokens or 0, exception=RuntimeError(outcome.error) if outcome.error else None,
        context={"outcome": outcome},
    )  # fmt: skip
    if outcome.error:
        return
    figures = [("ms to first token", outcome.ttft_s, 1000), ("ms per output token", outcome.tpot_s, 1000)]
    figures += [("ms between chunks", gap, 1000) for gap in outcome.gaps_s]
    figures += [("% accepted", outcome.acceptance_rate, 100)]
    for figure, value, scale in figures:
        if value is not None:
            environment.events.measured.fire(name=outcome.name, figure=figure, value=value * scale, outcome=outcome)


def add_measured_event(environment: Environment) -> None:
    """Adds the event ``measured``, and shows it as rows of locust's table that its totals do not count."""
    environment.events.measured = EventHook()

    def show(name: str, figure: str, value: float, **_: Any) -> None:
        environment.stats.get(name, figure).log(value, 0)

    environment.events.measured.add_listener(show)


class AnyUser(User):
    """A user of a closed loop: takes the next request, whatever it is, when the last one is answered."""

    abstract = True
    sort: ClassVar[str | None] = None

    @task
    def next_request(self) -> None:
        """One request, after the pause that belongs to it."""
        work: Work = self.environment.work
        request = work.session.take(self.sort)
        if request is None:
            raise StopUser
        sent = False
        try:
            gevent.sleep(request.think_s)
            sent = True
            work.carry_out(request)
        finally:
            if not sent:
                work.session.under_way -= 1


class ArrivalsUser(User):
    """An open loop: one user who sends each request when it is due, however many are under way."""

    abstract = True

    @task
    def all_arrivals(self) -> None:
        """The whole schedule."""
        work: Work = self.environment.work
        pool = Pool(work.max_in_flight)
        work.session.begin()

        def send(request: Request) -> None:
            if work.session.take() is None:
                raise StopUser
            pool.spawn(work.carry_out, request)

        try:
            dispatch(work.session.requests, send, work.session.now_s, gevent.sleep)
            pool.join()
        except StopUser:
            pool.join()
            raise
        finally:
            pool.kill()
        raise StopUser


class Mixed(AnyUser):
    """See ``AnyUser``."""


class Arrivals(ArrivalsUser):
    """See ``ArrivalsUser``."""


class ScheduledShape(LoadTestShape):
    """Users over time as the settings say; ends when all is sent and answered."""

    abstract = True
    shape: Shape = Shape()
    loop: str = "closed"
    objective: Objective = Objective()
    work: Work | None = None

    def tick(self) -> tuple[int, float] | None:
        """Users now; None when all is over."""
        if self.work is None:
            return None
        session, now_s = self.work.session, self.work.session.now_s()
        if self.shape.kind == "step" and broken_step(self.shape, session.outcomes, now_s, self.objective) is not None:
            session.close()
        if session.finished:
            return None
        count = 1 if self.loop == "open" else users_at(self.shape, min(now_s, duration_of(self.shape)))
        return count, count


def run_turn(turn: Turn, client: Client, target: str, began_s: float, settings: LoadSettings) -> Result:
    """Carries out one turn against one server, in locust's runner; waits for all answers."""
    environment: Any = Environment(user_classes=[Arrivals if turn.loop == "open" else Mixed], events=Events())
    environment.stop_timeout = settings.timeout_s
    add_measured_event(environment)
    session = Session(turn.requests, turn.until_s if turn.loop == "closed" else None)
    environment.work = Work(session, client, settings.max_in_flight, environment)
    runner = environment.create_local_runner()
    try:
        if turn.loop == "closed" and turn.steady_level is None:
            environment.shape_class = ScheduledShape()
            environment.shape_class.work, environment.shape_class.shape = environment.work, turn.shape
            runner.start_shape()
        else:
            count = 1 if turn.loop == "open" else users_at(turn.shape, 0.0)
            runner.start(count, spawn_rate=count)
        while not session.finished:
            gevent.sleep(POLL_S)
    finally:
        runner.quit()
    return Result(
        target, turn.condition, turn.loop, turn.steady_level, turn.number, began_s, tuple(session.outcomes), turn.step
    )
