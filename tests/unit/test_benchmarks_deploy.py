"""The deployed stack's section of RESULTS.md: every part of a way is shown, and their sum."""

from __future__ import annotations

from benchmarks.deploy_render import deploy
from tests.deploy.stack import moment, parts

RECORD = {
    "first_answer_s": {"containers": 2.0, "engine": 40.25, "first answer": 0.5},
    "recovery_s": {"container": 0.5, "engine": 39.0},
    "recovery_after_docker_kill_s": {"container": 3.5, "engine": 39.0},
    "stop_s": 8.2, "seen_by_clients": {"answered": 1200, "503": 31},
    "seen_at_docker_kill": {"503": 2}, "seen_at_stop": {"answered": 20, "not taken": 4},
    "hardware": {"cpu": "one", "cores": 2}, "revision": "abc", "date": "2026-01-02", "docker": "20.10.24",
}  # fmt: skip


def test_every_way_has_its_time_and_its_parts() -> None:
    text = deploy(RECORD)
    assert "first answer | 43 | containers 2.0, engine 40.2, first answer 0.5 |" in text
    assert "with the keeper | 42 | container 3.5, engine 39.0 |" in text
    assert "saw while the engine was killed: 31 503, 1,200 answered; at `docker kill`: 2 503;" in text


def test_parts_are_the_times_between_moments_and_the_first_is_the_beginning() -> None:
    begin = moment("2026-11-23T22:57:49.894134496Z")
    marks = {"": begin, "engine": moment("2026-11-23T22:58:29.994134496Z"), "answer": begin + 41.1}
    assert parts(marks) == {"engine": 40.1, "answer": 1.0}
