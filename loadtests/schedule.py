"""Which requests are sent, and when: pure functions of the settings and a seed."""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loadtests.prompts import PATHS, Prompt
from loadtests.settings import Length, LoadSettings, Shape
from stages.errors import InputError

Loop = Literal["closed", "open"]


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        place: in its schedule.
        at_s: when it is due, in seconds after the turn began; None in a closed loop, which sends it when a user is free.
        think_s: pause of the user before it.
    """

    place: int
    prompt: Prompt
    stream: bool
    max_tokens: int
    temperature: float
    tenant: str
    seed: int
    at_s: float | None = None
    think_s: float = 0.0

    @property
    def path(self) -> str:
        """Where it is sent to."""
        return PATHS[self.prompt.route]

    @property
    def name(self) -> str:
        """What tables call its sort."""
        return f"{self.prompt.route} {'streamed' if self.stream else 'whole'}"

    def body(self, model: str) -> dict[str, Any]:
        """What is sent."""
        asked = {
            "model": model, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": self.seed,
            **self.prompt.content,
        }  # fmt: skip
        return asked | ({"stream": True, "stream_options": {"include_usage": True}} if self.stream else {})


@dataclass(frozen=True)
class Turn:
    """What one server is asked in one go; every server is asked the same, one after the other.

    Attributes:
        condition: name in tables, e.g. ``closed-4``; turns of one condition are counted by ``number``.
        shape: load over time; of an open loop the requests' times follow from it.
        timed: whether a closed loop ends with the shape's time, not when all requests are answered.
        step: whether it is a step on the way to where the objective breaks.
    """

    condition: str
    loop: Loop
    number: int
    shape: Shape
    requests: tuple[Request, ...]
    timed: bool = True
    step: bool = False

    @property
    def until_s(self) -> float | None:
        """When a closed loop sends nothing more; None where its requests end it."""
        return duration_of(self.shape) if self.timed else None

    @property
    def steady_level(self) -> float | None:
        """Users or arrivals per second where they do not change."""
        return self.shape.level if self.shape.kind == "steady" else None


def steps_of(shape: Shape) -> list[float]:
    """The levels of a ``step`` shape, lowest first."""
    assert shape.to is not None
    return [shape.level + i * shape.by for i in range(int((shape.to - shape.level) / shape.by + 1e-9) + 1)]


def duration_of(shape: Shape) -> float:
    """How long it takes, in seconds."""
    return len(steps_of(shape)) * shape.every_s if shape.kind == "step" else shape.duration_s


def level_at(shape: Shape, at_s: float) -> float:
    """Users at a time, or arrivals per second, ``at_s`` seconds after the beginning."""
    if shape.kind == "steady":
        return shape.level
    assert shape.to is not None
    if shape.kind == "ramp":
        return shape.level + (shape.to - shape.level) * min(1.0, max(0.0, at_s / shape.duration_s))
    if shape.kind == "burst":
        return shape.to if at_s % shape.every_s >= shape.every_s - shape.burst_s else shape.level
    steps = steps_of(shape)
    return steps[min(len(steps) - 1, int(at_s / shape.every_s))]


def arrivals(shape: Shape, label: str) -> Iterator[float]:
    """Times of an inhomogeneous Poisson process, by thinning: exponential gaps where the level is steady.

    Args:
        label: what the random numbers are drawn from; equal labels give equal times.
    """
    draw, now, end = random.Random(label), 0.0, duration_of(shape)
    highest = max(shape.level, shape.to or 0.0) if shape.kind != "steady" else shape.level
    while True:
        now += draw.expovariate(highest)
        kept = draw.random() * highest < level_at(shape, now)
        if now >= end:
            return
        if kept:
            yield now


def _weighted(draw: random.Random, weights: Sequence[float]) -> int:
    sums = list(itertools.accumulate(weights))
    return min(bisect.bisect(sums, draw.random() * sums[-1]), len(sums) - 1)


def choices_of(settings: LoadSettings, prompts: Sequence[Prompt]) -> list[tuple[float, int, list[Prompt]]]:
    """Each kind in each length that it has: (weight, max_tokens, the prompts it may be).

    Raises:
        InputError: there is no prompt of a kind, or of a length, in any.
    """
    known = list(dict.fromkeys(prompt.kind for prompt in prompts))
    if unknown := [kind for kind in settings.kinds if kind not in known]:
        raise InputError(f"kinds: no prompt is of kind {unknown[0]!r}; the prompts' kinds: {', '.join(known)}")
    kinds = settings.kinds or {kind: sum(p.kind == kind for p in prompts) / len(prompts) for kind in known}
    found = {
        (length, kind): [p for p in prompts if p.kind == kind and length.min_chars <= p.chars <= _most(length)]
        for length, kind in itertools.product(settings.lengths, kinds)
    }
    for length in settings.lengths:
        if not any(found[length, kind] for kind in kinds):
            raise InputError(
                f"lengths: no prompt has {length.min_chars} to {_most(length):g} characters; widen the range"
            )
    for kind in kinds:
        if not any(found[length, kind] for length in settings.lengths):
            raise InputError(f"lengths: no prompt of kind {kind!r} is within any of them; widen a range")
    return [(kinds[kind] * length.weight, length.max_tokens, own) for (length, kind), own in found.items() if own]


def _most(length: Length) -> float:
    return math.inf if length.max_chars is None else length.max_chars


def requests_of(settings: LoadSettings, prompts: Sequence[Prompt], count: int, label: str) -> tuple[Request, ...]:
    """The first ``count`` requests of a schedule; asking for more leaves them as they are.

    Args:
        label: the schedule's name; with ``settings.seed`` it is what the random numbers are drawn from.
    """
    choices = choices_of(settings, prompts)
    weights, tenants = [choice[0] for choice in choices], [tenant.weight for tenant in settings.tenants]

    def one(place: int) -> Request:
        draw = random.Random(f"{settings.seed}/{label}/{place}")
        _, max_tokens, fitting = choices[_weighted(draw, weights)]
        return Request(
            place=place, prompt=draw.choice(fitting), stream=draw.random() < settings.stream, max_tokens=max_tokens,
            temperature=settings.temperature, tenant=settings.tenants[_weighted(draw, tenants)].name,
            seed=draw.randrange(2**31), think_s=draw.expovariate(1 / settings.think_s) if settings.think_s else 0.0,
        )  # fmt: skip

    return tuple(one(place) for place in range(count))


def requests_for(
    settings: LoadSettings, prompts: Sequence[Prompt], loop: Loop, shape: Shape, label: str
) -> tuple[Request, ...]:
    """The requests of one run of a shape: in an open loop those that arrive in its time, else as many as may be sent."""
    if loop == "closed":
        return requests_of(settings, prompts, settings.max_requests, label)
    times = list(itertools.islice(arrivals(shape, f"{settings.seed}/{label}/arrivals"), settings.max_requests))
    requests = requests_of(settings, prompts, len(times), label)
    return tuple(replace(request, at_s=at_s) for request, at_s in zip(requests, times, strict=True))


def _closed_turns(settings: LoadSettings, prompts: Sequence[Prompt], users: int) -> Iterator[Turn]:
    """Turns of a closed loop with a number of requests; the time is what it takes."""
    each = max(-(-settings.requests_per_turn // users), settings.requests_per_user)
    size = min(each * users, settings.max_requests)
    name = f"closed-{users}"
    everything = requests_of(settings, prompts, size * settings.turns, name)
    for number in range(settings.turns):
        yield Turn(name, "closed", number, Shape(level=users), everything[number * size : (number + 1) * size], False)


def _open_turns(settings: LoadSettings, prompts: Sequence[Prompt], rate: float) -> Iterator[Turn]:
    name, shape = f"open-{rate:g}", Shape(level=rate, duration_s=settings.turn_s)
    for number in range(settings.turns):
        requests = requests_for(settings, prompts, "open", shape, f"{name}/{number}")
        yield Turn(name, "open", number, shape, requests)


def _shaped_turns(settings: LoadSettings, prompts: Sequence[Prompt], shape: Shape) -> Iterator[Turn]:
    if shape.kind == "step":
        for level in steps_of(shape):
            name, steady = f"step-{level:g}", Shape(level=level, duration_s=shape.every_s)
            requests = requests_for(settings, prompts, settings.loop, steady, name)
            yield Turn(name, settings.loop, 0, steady, requests, step=True)
        return
    for number in range(settings.turns):
        requests = requests_for(settings, prompts, settings.loop, shape, f"{shape.kind}/{number}")
        yield Turn(shape.kind, settings.loop, number, shape, requests)


def turns_of(settings: LoadSettings, prompts: Sequence[Prompt]) -> list[Turn]:
    """All turns of a comparison; those of different conditions follow each other, so that drift falls on all alike.

    Steps come last, lowest first: which of them are run depends on how the earlier ones went.

    Raises:
        InputError: nothing is to be asked.
    """
    groups = [_closed_turns(settings, prompts, n) for n in settings.users]
    groups += [_open_turns(settings, prompts, rate) for rate in settings.rates]
    shaped = list(_shaped_turns(settings, prompts, settings.shape)) if settings.shape else []
    turns = [turn for group in groups for turn in group] + [turn for turn in shaped if not turn.step]
    found = sorted(turns, key=lambda turn: turn.number) + [turn for turn in shaped if turn.step]
    if not found:
        raise InputError("nothing is to be asked: give users, rates or a shape")
    return found


def dispatch(
    requests: Sequence[Request],
    send: Callable[[Request], object],
    now: Callable[[], float],
    sleep: Callable[[float], object],
) -> None:
    """An open loop: starts each request when it is due, whether earlier ones are answered or not.

    Args:
        send: starts a request and returns at once.
        now: seconds since the turn began.
    """
    for request in requests:
        assert request.at_s is not None
        if (wait := request.at_s - now()) > 0:
            sleep(wait)
        send(request)
