"""The keeper tells what was killed from what was stopped."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "docker" / "keeper.py"


@pytest.fixture(scope="module")
def keeper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("keeper", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event(action: str, container: str, service: str) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": container, "Attributes": {"com.docker.compose.service": service}}}


def started_after(keeper: ModuleType, *events: dict[str, Any]) -> list[str]:
    """What is started when these events come within the wait."""
    started: list[str] = []
    waiting: list[tuple[Callable[[str], None], str]] = []
    watching = keeper.Keeper(
        ["engine", "gateway"], lambda do, container: waiting.append((do, container)), started.append
    )
    for one in events:
        watching.see(one)
    for do, container in waiting:
        do(container)
    return started


def test_a_killed_container_is_started_and_a_stopped_one_is_not(keeper: ModuleType) -> None:
    assert started_after(keeper, event("die", "a", "engine")) == ["a"]
    assert started_after(keeper, event("die", "a", "engine"), event("stop", "a", "engine")) == []


def test_each_container_is_judged_by_its_own_events(keeper: ModuleType) -> None:
    events = [event("die", "a", "engine"), event("die", "b", "gateway"), event("stop", "b", "gateway")]
    assert started_after(keeper, *events) == ["a"]


def test_who_dies_twice_is_started_once(keeper: ModuleType) -> None:
    assert started_after(keeper, event("die", "a", "engine"), event("die", "a", "engine")) == ["a"]


def test_only_the_named_services_are_started(keeper: ModuleType) -> None:
    assert started_after(keeper, event("die", "a", "builder")) == []
