"""A measurement that was cut off goes on, with the cells it would have had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import drafts.asking as module
from drafts.asking import Asking
from drafts.blocks import Block, Cell, Condition
from drafts.client import Answer
from drafts.methods import EngineOptions, Method, Serving
from drafts.prompts import Prompt
from drafts.saved_cells import SavedCells, resume_turn
from server.acceptance import AcceptanceRecord
from stages.errors import EngineError

GREEDY, DRAWN = (Condition("code", 1, t) for t in (0.0, 1.0))
BLOCKS = tuple(
    Block(condition, (Prompt(kind="code", prompt=f"{condition.temperature} {i}"),), 0)
    for condition in (GREEDY, DRAWN)
    for i in range(3)
)
NAMES = ("plain", "draft")


def cell(method: str, turn: int) -> Cell:
    record = AcceptanceRecord(2, 4, 1, (1, 1, 0)) if method == "draft" else None
    answer = Answer("1", "code", "out\nput", "stop", 3, 4, 0.1, 0.5, record)
    return Cell(method, BLOCKS[turn].condition, turn, (answer,), 1.5)


def test_cells_are_read_back_as_they_were_and_half_a_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "cells"
    saved = SavedCells(file, "this")
    assert saved.keep(NAMES, BLOCKS) == 0
    made = [cell(name, turn) for turn in (0, 1) for name in NAMES]
    for item in made:
        saved.add(item)
    with file.open("a") as opened:
        opened.write('{"method": "plain", "condi')
    assert SavedCells(file, "this").cells == made
    assert SavedCells(file, "another").cells == []
    saved.clear()
    assert not file.exists()
    assert SavedCells(file, "this").cells == []


@pytest.mark.parametrize(("done", "turn"), [(0, 0), (2, 0), (3, 3), (5, 3), (6, 6)])
def test_a_condition_that_was_cut_off_begins_anew(done: int, turn: int) -> None:
    cells = [cell(name, t) for t in range(done) for name in NAMES]
    assert resume_turn(cells, NAMES, BLOCKS) == turn
    one_more = [*cells, *([cell("plain", done)] if done < 6 else [])]
    assert resume_turn(one_more, NAMES, BLOCKS) == turn


@pytest.mark.parametrize("alone", [True, False])
def test_an_engine_that_ends_costs_the_condition_it_ended_in(
    alone: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    fails_at = 9

    @contextmanager
    def fake_serving(_target: Path, methods: Sequence[Method], *_: object) -> Iterator[Serving]:
        yield Serving({method.name: method.name for method in methods}, {})

    async def ask_all(
        url: str, _model: str, prompts: Sequence[Prompt], sampling: object, *_: object, **__: object
    ) -> object:
        if len(prompts) == 1 and prompts[0].text != "warm-up" and getattr(sampling, "max_tokens", 0) == 8:
            if len(asked) == fails_at:
                raise EngineError("gone")
            asked.append((url, prompts[0].text))
        return [Answer(p.id, p.kind, f"{url} {p.text}", "stop", 1, 2, 0.1, 0.2, None) for p in prompts], 1.0

    monkeypatch.setattr(module, "serving", fake_serving)
    monkeypatch.setattr(module, "ask_all", ask_all)

    def run(saved: SavedCells | None) -> list[Cell]:
        methods = [Method(name) for name in NAMES]
        return module.ask_methods(tmp_path, methods, Asking(BLOCKS, 8, alone), tmp_path, EngineOptions(64, 1), saved)

    with pytest.raises(EngineError, match="gone"):
        run(SavedCells(tmp_path / "cells", "this"))
    first, fails_at = len(asked), 10_000
    resumed = run(SavedCells(tmp_path / "cells", "this"))
    again = len(asked) - first
    assert again == (6 if not alone else 3), (
        "of twelve cells nine were there; the condition that was cut off is asked anew"
    )
    assert sorted(resumed, key=repr) == sorted(run(None), key=repr)
