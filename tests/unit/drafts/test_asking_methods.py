"""Which methods are served at the same time; what they are asked is the same either way."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import drafts.asking as module
from drafts.asking import Asking
from drafts.blocks import Block, Cell, Condition
from drafts.methods import EngineOptions, Method, Serving


@pytest.mark.parametrize(("alone", "groups"), [(True, [["plain"], ["draft"]]), (False, [["plain", "draft"]])])
def test_methods_are_served_side_by_side_or_one_after_the_other(
    alone: bool, groups: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served: list[list[str]] = []

    @contextmanager
    def fake_serving(_target: Path, methods: Sequence[Method], *_: object) -> Iterator[Serving]:
        served.append([method.name for method in methods])
        yield Serving({method.name: f"http://{method.name}" for method in methods}, {})

    def fake_run(urls: dict[str, str], blocks: Sequence[Block], *_: object) -> list[Cell]:
        return [Cell(name, block.condition, turn, (), 1.0) for turn, block in enumerate(blocks) for name in urls]

    monkeypatch.setattr(module, "serving", fake_serving)
    monkeypatch.setattr(module, "run_cells", fake_run)
    blocks = tuple(Block(Condition("code", 1, t), (), 0) for t in (0.0, 1.0))
    methods = [Method("plain"), Method("draft", {"method": "draft_model"})]
    found = module.ask_methods(tmp_path, methods, Asking(blocks, 8, alone), tmp_path, EngineOptions(64, 1))
    assert served == groups
    assert {(cell.method, cell.turn) for cell in found} == {(m.name, turn) for m in methods for turn in (0, 1)}
