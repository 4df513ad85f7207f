from __future__ import annotations

from pathlib import Path

from drafts.choice import ChooseSettings
from drafts.choosing import choose
from drafts.pictures import draw_choice, draw_comparison
from tests.unit.drafts.test_choosing import MIDDLING, SATURATED, USELESS, costs, measurements
from tests.unit.drafts.test_suffix import beside


def test_a_speed_up_outside_the_range_of_its_turns_can_be_drawn(tmp_path: Path) -> None:
    """Turns of unequal answers: the ratio of totals is no average of their ratios."""
    row = {"method": "draft", "kind": "code", "concurrency": 1, "temperature": 0.0}
    rows = [{**row, "speedup": 1.3, "speedup_low": 1.31, "speedup_high": 1.4}]
    draw_comparison(rows, tmp_path / "speedup.png")
    assert (tmp_path / "speedup.png").stat().st_size > 1000


def test_a_choice_is_drawn_with_and_without_a_draft(tmp_path: Path) -> None:
    for name, histogram in (("some", MIDDLING), ("none", USELESS)):
        found = measurements(histogram, *costs(4), *SATURATED)
        draw_choice(choose(found, ChooseSettings()), found, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_suffix_decoding_is_drawn_beside_the_draft_and_in_its_place(tmp_path: Path) -> None:
    for way, greedy in (("draft", 1.2), ("suffix", 4.0)):
        found = beside(MIDDLING, greedy, 1.1, greedy, 1.0)
        choice = choose(found, ChooseSettings())
        assert choice.way == way
        draw_choice(choice, found, tmp_path / f"{way}.png")
        assert (tmp_path / f"{way}.png").stat().st_size > 10_000
