"""The load generator, a process of its own (gevent's patches stay in it): a job on standard input, results on standard output.

``python -m loadtests.worker``; each line of the output is what one turn of one server came to.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from typing import Any

from loadtests.answers import Outcome, Speculation
from loadtests.client import Client
from loadtests.figures import Result, goodput
from loadtests.prompts import read_prompts
from loadtests.schedule import turns_of
from loadtests.settings import LoadSettings
from stages.errors import UnderstudyError


def encode(result: Result) -> str:
    """A result as one line."""
    return json.dumps(asdict(result), separators=(",", ":"))


def decode(line: str) -> Result:
    """What ``encode`` made a line of."""
    values = json.loads(line)
    return Result(**{**values, "outcomes": tuple(map(outcome_from, values["outcomes"]))})


def outcome_from(values: dict[str, Any]) -> Outcome:
    """An outcome from plain values."""
    record = values["speculation"]
    more = {"chunk_s": tuple(values["chunk_s"]), "speculation": Speculation(**record) if record else None}
    return Outcome(**{**values, **more})


def in_turn(names: list[str], number: int) -> list[str]:
    """The order in which servers are asked: the other way round in every second turn."""
    return names if number % 2 == 0 else names[::-1]


def run(settings: LoadSettings, clients: dict[str, Client]) -> None:
    """Carries out all turns; a server that a step broke is asked no further step."""
    from loadtests.users import run_turn

    started, broken = time.perf_counter(), set[str]()
    for turn in turns_of(settings, read_prompts(settings.prompts)):
        for name in in_turn(list(clients), turn.number):
            if turn.step and name in broken:
                continue
            result = run_turn(turn, clients[name], name, time.perf_counter() - started, settings)
            share = goodput(result.outcomes, settings.objective)
            if turn.step and share is not None and share < settings.objective.share:
                broken.add(name)
            print(encode(replace(result, began_s=round(result.began_s, 3))), flush=True)


def main() -> None:
    """Job in, results out."""
    import loadtests.users  # noqa: F401  (its patches, before anything opens a connection)

    job = json.loads(sys.stdin.readline())
    settings = LoadSettings.model_validate(job["settings"])
    clients = {
        name: Client(url, job["models"][name], job["keys"], settings.timeout_s) for name, url in job["targets"].items()
    }
    try:
        run(settings, clients)
    except UnderstudyError as error:
        print(f"understudy: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
