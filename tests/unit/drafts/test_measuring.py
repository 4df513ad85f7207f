from dataclasses import replace
from pathlib import Path

import pytest

from drafts.blocks import Cell, Condition
from drafts.cells import rows_of
from drafts.client import Answer
from drafts.measurements import ALL
from drafts.measuring import (
    WAVES,
    MeasureSettings,
    acceptances,
    blocks_for,
    found_in,
    methods_in,
    plain_step_seconds,
    quartiles,
    relative_to_plain,
    step_in_plain_steps,
)
from drafts.methods import EngineOptions
from drafts.prompts import Prompt
from server.acceptance import AcceptanceRecord
from stages.errors import EngineError


def answer(seconds: float, tokens: int = 11) -> Answer:
    return Answer("a", "code", "x", "length", 5, tokens, 1.0, 1.0 + seconds, None)


def cell(*answers: Answer, method: str = "plain", kind: str = "code", concurrency: int = 1) -> list[Cell]:
    return [Cell(method, Condition(kind, concurrency, 0.0), 0, answers, 1.0)]


def test_the_spread_of_few_steps_stays_within_what_was_seen() -> None:
    """A stall in one of two answers must not put the lower quartile below zero."""
    low, middle, high = quartiles([0.02, 0.9])
    assert 0.02 <= low <= middle <= high <= 0.9
    assert middle == pytest.approx(0.46)


def test_answers_that_came_in_one_chunk_say_nothing_about_a_step() -> None:
    assert plain_step_seconds(answer(0.0)) is None
    assert plain_step_seconds(answer(1.0, tokens=1)) is None
    assert step_in_plain_steps(answer(0.0), 0.1) is None
    assert step_in_plain_steps(answer(1.0, tokens=1), 0.1) is None
    with pytest.raises(EngineError, match="longer answers"):
        quartiles([0.1])


def test_steps_without_draft_tokens_do_not_make_the_others_longer() -> None:
    """Ten tokens after the first: two steps of 15 ms brought four each, two more of 10 ms one each."""
    judged = replace(answer(0.05), speculation=AcceptanceRecord(2, 8, 6, (0, 0, 0, 2, 0)))
    assert step_in_plain_steps(judged, 0.01) == pytest.approx(1.5)
    nothing = replace(answer(0.12), speculation=AcceptanceRecord(0, 0, 0, (0, 0)))
    assert step_in_plain_steps(nothing, 0.01) == pytest.approx(1.2)
    cut = replace(answer(0.03), speculation=AcceptanceRecord(2, 8, 9, (0, 0, 0, 0, 2)))
    assert step_in_plain_steps(cut, 0.01) == pytest.approx(1.5), "tokens beyond the answer's length were accepted too"


def test_more_requests_at_a_time_than_there_are_prompts() -> None:
    prompts = [Prompt(kind=kind, prompt=f"x{i}") for i, kind in enumerate(("code", "code", "chat"))]
    settings = MeasureSettings(concurrencies=(1, 4), prompts_per_kind=8, repeats=2)
    blocks = blocks_for(prompts, settings)
    first = [block for block in blocks if block.condition.concurrency == 1]
    chat = [("chat", 0.0, 1), ("chat", 1.0, 1)]
    code = [("code", 0.0, 1), ("code", 0.0, 1), ("code", 1.0, 1), ("code", 1.0, 1)]
    assert [(b.condition.kind, b.condition.temperature, len(b.prompts)) for b in first] == 2 * [*chat, *code] + 2 * chat
    later = [block for block in blocks if block.condition.concurrency == 4]
    assert [(b.condition.kind, len(b.prompts)) for b in later] == [(ALL, 4)] * 2 * 2 * WAVES
    assert len({block.seed for block in later}) == 2 * WAVES
    assert set(later[0].prompts) == set(prompts)


def test_concurrencies_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        MeasureSettings(concurrencies=(4, 1))


def test_costs_by_engine_and_concurrency_and_acceptance_of_the_longer_run() -> None:
    settings = MeasureSettings(concurrencies=(1, 4), num_speculative_tokens=(2, 6))
    cells = []
    for concurrency in settings.concurrencies:
        for place, method in enumerate(("plain", "verify", "draft-small", "draft-large")):
            one, kind = answer(0.1 * (1 + place) * concurrency), "code" if concurrency == 1 else ALL
            cells += cell(one, one, method=method, kind=kind, concurrency=concurrency)
    judged = replace(answer(0.5), speculation=AcceptanceRecord(5, 30, 6, (2, 1, 1, 1, 0, 0, 0)))
    cells += cell(judged, judged, method="draft-large")
    found = found_in(cells, settings, ["draft"])
    table = {(c.method, c.concurrency, c.num_speculative_tokens): c.seconds for c in found.costs}
    assert len(table) == len(found.costs) == 8
    assert table["plain", 1, 0] == pytest.approx(0.01)
    assert table["verify", 4, 6] == pytest.approx(0.08)
    assert table["draft", 4, 2] == pytest.approx(0.12)
    assert [(a.kind, a.histogram) for a in found.acceptances] == [("code", (4, 2, 2, 2, 0, 0, 0))]


def test_an_engine_with_a_draft_that_proposes_nothing_is_timed_where_there_is_one() -> None:
    settings = MeasureSettings(concurrencies=(1,), num_speculative_tokens=(2, 6))
    cells = []
    for place, method in enumerate(("plain", "verify", "draft-small", "draft-large")):
        cells += cell(answer(0.1 * (1 + place)), answer(0.1 * (1 + place)), method=method)
    nothing = replace(answer(0.12), speculation=AcceptanceRecord(0, 0, 0, (0, 0, 0)))
    cells += cell(nothing, nothing, method="draft-none")
    (found,) = [
        c for c in found_in(cells, settings, ["draft"]).costs if (c.method, c.num_speculative_tokens) == ("draft", 0)
    ]
    assert found.seconds == pytest.approx(0.012)


def test_only_a_draft_that_the_engine_itself_runs_is_measured_with_nothing_to_propose(tmp_path: Path) -> None:
    how, settings = EngineOptions(64, 8), MeasureSettings()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"0" * 64)
    own = methods_in(tmp_path, "draft", settings, how)
    assert [method.name for method in own] == ["draft-small", "draft-large"]
    at_once = methods_in(tmp_path, "parallel", settings, how)
    assert [method.name for method in at_once] == ["parallel-small", "parallel-large", "parallel-none"]
    config = at_once[-1].speculative_config or {}
    assert (config["parallel_drafting"], config["num_speculative_tokens_per_batch_size"]) == (True, [[1, 8, 0]])
    (tmp_path / "config.json").write_text('{"model_type": "another"}')
    assert [method.name for method in methods_in(tmp_path, "draft", settings, how)][-1] == "draft-none"


def test_acceptance_is_counted_by_the_kind_of_each_prompt_at_all_concurrencies() -> None:
    code = replace(answer(0.5), speculation=AcceptanceRecord(2, 4, 1, (1, 1, 0)))
    chat = replace(code, kind="chat", speculation=AcceptanceRecord(3, 6, 6, (0, 0, 3)))
    cells = cell(code, method="draft-large") + cell(code, chat, method="draft-large", kind=ALL, concurrency=4)
    assert [(a.kind, a.histogram) for a in acceptances(cells, "draft")] == [("chat", (0, 0, 3)), ("code", (2, 2, 0))]


def test_a_machine_that_slows_down_does_not_change_what_a_step_costs_beside_plain() -> None:
    """The second turn is five times slower; the draft's step is 1.5 plain steps in both."""

    def turn(number: int, factor: float) -> list[Cell]:
        plain = Cell("plain", Condition("code", 1, 0.0), number, (answer(0.1 * factor),), 1.0)
        return [plain, Cell("draft", Condition("code", 1, 0.0), number, (answer(0.15 * factor),), 1.0)]

    made = [*turn(0, 1.0), *turn(1, 5.0)]
    drafted, plain = ([c for c in made if c.method == method] for method in ("draft", "plain"))
    ratios = relative_to_plain(
        drafted, plain, lambda cell: [answer.e2e_s - answer.ttft_s for answer in cell.answers],
        lambda answer, seconds: (answer.e2e_s - answer.ttft_s) / seconds,
    )  # fmt: skip
    assert ratios == [pytest.approx(1.5)] * 2


def test_first_tokens_that_have_waited_for_other_prompts_are_left_out() -> None:
    settings = MeasureSettings(concurrencies=(4,), num_speculative_tokens=(2, 6))
    cells = []
    for method in ("plain", "verify", "draft-small", "draft-large"):
        cells += cell(answer(0.1), answer(0.2), method=method, kind=ALL, concurrency=4)
    assert found_in(cells, settings, ["draft"]).first_tokens == ()


def turn(method: str, number: int, tokens: int, wall_s: float, condition: Condition) -> Cell:
    found = replace(answer(0.5, tokens), speculation=AcceptanceRecord(2, 8, 3, ()) if method == "suffix" else None)
    return Cell(method, condition, number, (found, found), wall_s)


def test_suffix_decoding_is_timed_over_whole_turns_as_comparisons_are() -> None:
    """Tokens per second over plain's, of all turns together: the longer turn counts more. Answers may be of unequal length."""
    alone, mixed = Condition("code", 1, 0.0), Condition(ALL, 4, 0.0)
    cells = [
        turn("plain", 0, 10, 4.0, alone), turn("suffix", 0, 10, 2.0, alone),
        turn("plain", 1, 20, 6.0, alone), turn("suffix", 1, 10, 3.0, alone),
        turn("plain", 2, 10, 1.0, mixed), turn("suffix", 2, 10, 2.0, mixed),
    ]  # fmt: skip
    cells += [
        replace(c, method=name)
        for c in cells
        if c.method == "plain"
        for name in ("verify", "draft-small", "draft-large")
    ]
    settings = MeasureSettings(concurrencies=(1, 4), num_speculative_tokens=(2, 6))
    found = found_in(cells, settings, ["draft"])
    rows = {row["concurrency"]: row for row in rows_of(cells, str.split) if row["method"] == "suffix"}
    assert [(s.kind, s.temperature, s.concurrency, s.num_speculative_tokens) for s in found.served] == [
        ("code", 0.0, 1, 8), (ALL, 0.0, 4, 8)
    ]  # fmt: skip
    first, second = found.served
    assert first.speedup == pytest.approx((40 / 5.0) / (60 / 10.0))
    assert (first.low, first.high) == (pytest.approx((20 / 3) / (40 / 6)), pytest.approx(2.0))
    assert second.speedup == pytest.approx(0.5)
    assert (first.num_drafts, first.num_draft_tokens, first.num_accepted_tokens) == (8, 32, 12)
    assert all(s.speedup == rows[s.concurrency]["speedup"] for s in found.served)
    assert {cost.method for cost in found.costs} == {"plain", "verify", "draft"}
    without = found_in([c for c in cells if c.method != "suffix"], settings, ["draft"])
    assert without == found.model_copy(update={"served": ()})


def test_what_suffix_decoding_remembers_is_forgotten_before_each_wave() -> None:
    """Also with one temperature, where condition and prompts of the waves may be the same."""
    prompts = [Prompt(kind="code", prompt=str(i)) for i in range(4)]
    settings = MeasureSettings(concurrencies=(1, 4), temperatures=(0.0,), repeats=2)
    waves = [block for block in blocks_for(prompts, settings) if block.condition.concurrency == 4]
    assert len({(block.condition, block.repeat) for block in waves}) == len(waves) == 2 * WAVES


def test_a_draft_that_can_propose_in_one_pass_is_measured_in_both_ways() -> None:
    settings = MeasureSettings(concurrencies=(1,), num_speculative_tokens=(2, 6))
    cells = []
    for method, seconds in (("plain", 0.1), ("verify", 0.2), ("draft-small", 0.3), ("draft-large", 0.4)):
        cells += cell(answer(seconds), answer(seconds), method=method)
    slow = replace(answer(0.5), ttft_s=1.5, e2e_s=2.0, speculation=AcceptanceRecord(5, 30, 6, (2, 1, 1, 1, 0, 0, 0)))
    for method in ("parallel-small", "parallel-large"):
        cells += cell(slow, slow, method=method)
    found = found_in(cells, settings, ["draft", "parallel"])
    assert found.ways == ("draft", "parallel")
    assert {a.way: a.histogram for a in found.acceptances}["parallel"] == (4, 2, 2, 2, 0, 0, 0)
    assert {(c.method, c.num_speculative_tokens) for c in found.costs} >= {
        ("draft", 6),
        ("parallel", 2),
        ("parallel", 6),
    }
    firsts = {first.method: (first.seconds, first.later_tokens) for first in found.first_tokens}
    assert firsts == {"plain": (1.0, 10.0), "draft": (1.0, 10.0), "parallel": (1.5, 10.0)}
