"""Cells of a measurement that has not ended, a JSON line each, so that the same command goes on where it was cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from drafts.blocks import Block, Cell, Condition
from drafts.client import Answer
from server.acceptance import AcceptanceRecord
from stages.folders import storage_errors, write_text
from stages.hashing import value_hash
from stages.progress import log


class SavedCells:
    """A file of cells, and what they are of.

    Args:
        file: where they are kept until ``clear``.
        made_from: what the measurement depends on; cells of another one are forgotten.
    """

    def __init__(self, file: Path, made_from: Any):
        self._file = file
        self._head = json.dumps({"made_from": value_hash(made_from)})
        self.cells = self._read()

    def _read(self) -> list[Cell]:
        try:
            head, *lines = self._file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return []
        if head != self._head:
            return []
        try:
            return [
                _cell(json.loads(line)) for line in lines[:-1]
            ]  # behind the last line break is nothing, or half a line
        except (ValueError, TypeError, KeyError):  # damaged, or of another version of this program
            log(f"{self._file}: cannot be read; measuring from the beginning")
            return []

    def keep(self, methods: Sequence[str], blocks: Sequence[Block]) -> int:
        """Forgets the cells of these methods that stand in the middle of a condition's prompts.

        Returns:
            the turn to go on with: before it every method has answered.
        """
        turn = resume_turn(self.cells, methods, blocks)
        self.cells = [cell for cell in self.cells if cell.method not in methods or cell.turn < turn]
        write_text(self._file, "\n".join([self._head, *map(_line, self.cells), ""]))
        return turn

    def add(self, cell: Cell) -> None:
        """Keeps one more."""
        self.cells.append(cell)
        with storage_errors(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(_line(cell) + "\n")

    def clear(self) -> None:
        """Forgets all: what was made of them stands."""
        self._file.unlink(missing_ok=True)


def resume_turn(cells: Sequence[Cell], methods: Sequence[str], blocks: Sequence[Block]) -> int:
    """The first turn of the first condition and repeat that not all methods have answered: what one remembers is its beginning."""
    done = {(cell.method, cell.turn) for cell in cells}
    turn = next((t for t in range(len(blocks)) if any((m, t) not in done for m in methods)), len(blocks))
    while 0 < turn < len(blocks) and blocks[turn].same_pass(blocks[turn - 1]):
        turn -= 1
    return turn


def _line(cell: Cell) -> str:
    return json.dumps(asdict(cell))


def _cell(values: dict[str, Any]) -> Cell:
    answers = tuple(_answer(found) for found in values.pop("answers"))
    return Cell(**{**values, "condition": Condition(**values["condition"]), "answers": answers})


def _answer(values: dict[str, Any]) -> Answer:
    found = values["speculation"]
    record = None if found is None else AcceptanceRecord(**{**found, "histogram": tuple(found["histogram"])})
    return Answer(**{**values, "speculation": record})
