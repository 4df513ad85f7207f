import io

import pytest
from rich.console import Console

from drafts.asking import orders_of, run_cells
from drafts.blocks import Cell, Condition, blocks_of, conditions_of
from drafts.cells import acceptance, differing, histogram, rows_of
from drafts.client import Answer, Sampling
from drafts.prompts import Prompt
from drafts.table import render
from server.acceptance import AcceptanceRecord

GREEDY = Condition("code", 1, 0.0)


def answer(
    prompt: str, text: str, seconds: float, tokens: int = 11, speculation: AcceptanceRecord | None = None
) -> Answer:
    return Answer(prompt, "code", text, "length", 5, tokens, 0.1 * seconds, seconds, speculation)


def cells(plain_s: float = 2.0, draft_s: float = 1.0, draft_text: str = "same") -> list[Cell]:
    made = []
    for repeat, factor in enumerate((1.0, 1.25)):
        record = AcceptanceRecord(4, 12, 6, (1, 1, 1, 1))
        plain = (answer("a", "same", plain_s * factor), answer("b", "x " * 40, plain_s * factor))
        draft = (
            answer("a", draft_text, draft_s, speculation=record),
            answer("b", "x " * 40, draft_s / 4, speculation=record),
        )
        made.append(Cell("plain", GREEDY, repeat, plain, 2 * plain_s * factor))
        made.append(Cell("draft", GREEDY, repeat, draft, 1.25 * draft_s))
    return made


def rows(**changes: object) -> dict[str, dict[str, object]]:
    return {str(row["method"]): row for row in rows_of(cells(**changes), str.split)}  # type: ignore[arg-type]


def test_speedup_is_a_ratio_of_totals_with_the_extremes_of_single_turns() -> None:
    row = rows()["draft"]
    assert row["speedup_low"] == pytest.approx(4 / 1.25)
    assert row["speedup_high"] == pytest.approx(5 / 1.25)
    assert row["speedup"] == pytest.approx(9 / 2.5)
    assert rows()["plain"]["speedup"] == pytest.approx(1.0)
    assert (row["num_prompts"], row["repeats"], row["turns"]) == (2, 2, 2)


def test_looping_prompts_are_reported_and_left_out_of_the_second_figure() -> None:
    row = rows()["draft"]
    assert row["looping_outputs"] == pytest.approx(0.5)
    assert row["speedup_without_loops"] == pytest.approx(4.5 / 2)


@pytest.mark.parametrize("repeats", [1, 2])
def test_methods_take_turns_after_every_block_and_share_prompts_and_seeds(
    repeats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str], int]] = []

    async def ask_all(
        url: str, model: str, prompts: list[Prompt], sampling: Sampling, concurrency: int, rate: float | None = None
    ) -> object:
        assert rate is None
        asked.append((url, [prompt.prompt or "" for prompt in prompts], sampling.seed))
        return [answer(prompt.id, "x", 1.0) for prompt in prompts], 1.0

    monkeypatch.setattr("drafts.asking.ask_all", ask_all)
    prompts = [Prompt(prompt=str(i), kind="code") for i in range(5)]
    urls = {"plain": "p", "draft": "d"}
    before: list[int] = []
    blocks = blocks_of(prompts, [GREEDY], repeats, block_size=2, seed=7)
    made = run_cells(urls, blocks, max_tokens=4, forget=lambda: before.append(len(asked) - 2))
    measured = asked[2:]
    assert before == [6 * repeat for repeat in range(repeats)], "caches are emptied once before every repeat"
    assert len(made) == len(measured) == 2 * 3 * repeats
    turns = [measured[i : i + 2] for i in range(0, len(measured), 2)]
    assert [turn[0][0] for turn in turns] == ["p", "d", "d", "p", "p", "d"][: 3 * repeats]
    assert all(first[1:] == second[1:] for first, second in turns)
    assert [turn[0][1] for turn in turns][:3] == [["0", "1"], ["2", "3"], ["4"]]
    assert [turn[0][2] for turn in turns][:3] == [7, 9, 11]


def test_within_each_condition_every_method_stands_at_every_place_equally_often() -> None:
    names, prompts = ["plain", "a", "b", "c"], [Prompt(prompt=str(i), kind="code") for i in range(8)]
    conditions = [Condition("code", n, t) for n in (1, 2) for t in (0.0, 1.0)]
    blocks = blocks_of(prompts, conditions, repeats=2, block_size=2, seed=0)
    orders = [(block.condition, order) for block, order in zip(blocks, orders_of(names, blocks), strict=True)]
    for condition in conditions:
        own = [order for found, order in orders if found == condition]
        assert len(own) == 8
        assert all(sorted(order) == sorted(names) for order in own)
        assert all(sum(order[place] == name for order in own) == 2 for name in names for place in range(4))
        assert all(first == second[::-1] for first, second in zip(own[::2], own[1::2], strict=True))
    assert len({next(order[0] for found, order in orders if found == c) for c in conditions}) == len(names)


def test_a_condition_has_two_turns_at_least() -> None:
    prompts = [Prompt(prompt=str(i), kind="code") for i in range(16)]
    conditions = [GREEDY, Condition("code", 16, 0.0), Condition("code", 16, 0.0, rate=2.0)]
    blocks = blocks_of(prompts, conditions, repeats=2, block_size=8, seed=0)
    assert [sum(block.condition == condition for block in blocks) for condition in conditions] == [4, 4, 4]
    assert len({block.seed for block in blocks if block.condition == conditions[1]}) == 4
    assert all(block.prompts == tuple(prompts) for block in blocks if block.condition != GREEDY)


def test_a_block_lasts_some_waves_where_many_are_asked_at_a_time() -> None:
    prompts = [Prompt(prompt=str(i), kind="code") for i in range(8)]
    conditions = [Condition("code", n, 0.0) for n in (1, 4, 16)]
    sizes = [[len(b.prompts) for b in blocks_of(prompts, [one], 1, 3, 0)] for one in conditions]
    assert sizes == [[3, 3, 2], [4, 4], [8, 8]]
    many = [Prompt(prompt=str(i), kind="code") for i in range(150)]
    parts = [b.prompts for b in blocks_of(many, conditions[2:], 1, 20, 0, waves=4)]
    assert [len(part) for part in parts] == [64, 86], "less than half a block is left over"
    assert [prompt for part in parts for prompt in part] == many
    assert [len(b.prompts) for b in blocks_of(many, conditions[:1], 1, 50, 0, waves=4)] == [50, 50, 50]


def test_identical_outputs_counts_texts() -> None:
    assert rows()["draft"]["identical_outputs"] == 1.0
    assert rows(draft_text="other")["draft"]["identical_outputs"] == 0.5
    found = differing(cells(draft_text="other"))
    assert [(d["method"], d["prompt_id"], d["text"]) for d in found] == [("draft", "a", "other")]


def test_acceptance_is_a_ratio_of_sums() -> None:
    """Two requests of very different size: the average of their rates would be 0.55."""
    small, large = AcceptanceRecord(1, 1, 1, (0, 1)), AcceptanceRecord(100, 100, 10, (90, 10))
    found = acceptance([answer("a", "", 1.0, speculation=small), answer("b", "", 1.0, speculation=large)])
    assert found["acceptance_rate"] == pytest.approx(11 / 101)
    assert found["mean_acceptance_length"] == pytest.approx(1 + 11 / 101)
    assert histogram([answer("a", "", 1.0, speculation=small), answer("b", "", 1.0, speculation=large)]) == [90, 11]


def test_without_drafts_acceptance_is_undefined() -> None:
    found = acceptance([answer("a", "", 1.0)])
    assert found["acceptance_rate"] is None
    assert found["mean_acceptance_length"] is None


def test_time_per_token_needs_two_tokens() -> None:
    assert answer("a", "", 1.0, tokens=1).tpot_s is None
    assert answer("a", "", 1.0, tokens=10).tpot_s == pytest.approx(0.1)


def test_the_printed_table_fits_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    render(list(rows().values()), console)
    shown = console.export_text()
    assert "code ×1, T=0" in shown
    assert "3.60 (3.20–4.00)" in shown
    assert "…" not in shown


def test_in_an_open_loop_the_speedup_is_how_much_sooner_a_request_ends() -> None:
    open_loop = Condition("code", 16, 0.0, rate=3.0)
    slow = Cell("plain", open_loop, 0, (answer("a", "x", 2.0), answer("b", "x", 4.0)), 10.0)
    fast = Cell("draft", open_loop, 0, (answer("a", "x", 1.0), answer("b", "x", 1.0)), 10.0)
    row = next(row for row in rows_of([slow, fast], str.split) if row["method"] == "draft")
    assert (row["rate"], row["speedup"]) == (3.0, pytest.approx(3.0))


def test_conditions_of_closed_and_open_loops() -> None:
    found = conditions_of([Prompt(prompt="x", kind="code")], [1, 8], [0.0], [2.5])
    assert found == [Condition("code", 1, 0.0), Condition("code", 8, 0.0), Condition("code", 8, 0.0, 2.5)]
