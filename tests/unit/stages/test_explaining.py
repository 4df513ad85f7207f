"""What can be set is told from the settings classes themselves."""

from __future__ import annotations

import pytest
from pydantic import Field
from typer.testing import CliRunner

import understudy
from stages.explaining import explanations, listing
from stages.settings import Settings


class Inner(Settings):
    """One of many.

    Attributes:
        depth: how far down,
            at most.
    """

    depth: int = 3


class Outer(Inner):
    """Several ways to explain.

    Attributes:
        left, right: both ends.

    Raises:
        nothing: at all.
    """

    left: int = 1
    right: int = 2
    top: str = "a"
    """What ``stands``
    under it."""
    under: str = Field(default="b", description="a description")
    inner: Inner = Inner()
    bare: bool
    wide: bool = False


def test_every_way_of_explaining_is_read_and_a_parents_too() -> None:
    assert explanations(Outer) == {
        "depth": "how far down, at most.", "left": "both ends.", "right": "both ends.", "top": "What ``stands`` under it.",
        "under": "a description",
    }  # fmt: skip


def test_settings_within_settings_are_indented_and_what_has_no_default_is_required() -> None:
    lines = list(listing(Outer))
    assert lines[:2] == ["depth = 3", "    how far down, at most."]
    place = lines.index("inner:")
    assert lines[place + 1 : place + 3] == ["    depth = 3", "        how far down, at most."]
    assert "bare = (required)" in lines
    assert "    What stands under it." in lines


@pytest.mark.parametrize(
    "verb", ["prune", "prune-nuteprune", "recover", "measure", "serve", "engine", "build", "sweep", "loadtest"]
)
def test_the_command_explains_most_of_what_can_be_set(verb: str) -> None:
    shown = CliRunner().invoke(understudy.app, ["settings", verb]).stdout.splitlines()
    own = [line for line in shown if " = " in line and not line.startswith(" ")]
    told = [line for line in shown if line.startswith("    ")]
    assert len(own) >= 3
    assert len(told) >= len(own) / 3
