from itertools import pairwise

import pytest

from drafts.choice import Choice, ChooseSettings
from drafts.choosing import choose, schedule_of
from drafts.measurements import Acceptance, FirstToken, Measurements, StepCost
from stages.errors import InputError

PERFECT = (0, 0, 0, 0, 0, 0, 100)
MIDDLING = (30, 30, 20, 10, 5, 3, 2)
USELESS = (100, 0, 0, 0, 0, 0, 0)


def costs(
    concurrency: int = 1, plain: float = 0.010, small: float = 0.012, large: float = 0.016, verify: float = 0.011
) -> tuple[StepCost, ...]:
    rows = (("plain", 0, plain), ("verify", 6, verify), ("draft", 2, small), ("draft", 6, large))
    return tuple(
        StepCost(
            method=method, concurrency=concurrency, num_speculative_tokens=tokens,
            seconds=seconds, low=0.9 * seconds, high=1.2 * seconds,
        )  # type: ignore[arg-type]
        for method, tokens, seconds in rows
    )  # fmt: skip


SATURATED = costs(16, plain=0.010, small=0.031, large=0.073, verify=0.070)
"""Where checking K + 1 tokens costs K + 1 steps."""


def measurements(histogram: tuple[int, ...], *more: StepCost, **seconds: float) -> Measurements:
    accepted = (Acceptance(kind="code", temperature=0.0, histogram=histogram),)
    return Measurements(costs=(*costs(**seconds), *more), acceptances=accepted)  # type: ignore[arg-type]


def by_tokens(choice: Choice) -> dict[int, float]:
    return {item.num_speculative_tokens: item.speedup for item in choice.considered}


def test_a_perfect_draft_takes_all_tokens() -> None:
    choice = choose(measurements(PERFECT), ChooseSettings())
    assert choice.num_speculative_tokens == 6
    assert choice.schedule == ((1, 1, 6),)
    assert choice.expected is not None
    assert choice.expected.speedup == pytest.approx(7 * 10 / 16)
    assert choice.expected.acceptance_rate == pytest.approx(1.0)


def test_no_kind_of_traffic_is_slowed_down_for_the_others() -> None:
    """Of a step that costs more with every token, one kind has the most at six and another loses from four on."""
    accepted = tuple(
        Acceptance(kind=kind, temperature=0.0, histogram=histogram)
        for kind, histogram in (("chat", PERFECT), ("code", (60, 30, 10, 0, 0, 0, 0)))
    )
    found = Measurements(costs=costs(small=0.013, large=0.018), acceptances=accepted)
    free, kept = (choose(found, ChooseSettings(floor=floor)) for floor in (0.0, 0.98))
    worst = {item.num_speculative_tokens: item.worst for item in kept.considered}
    assert free.num_speculative_tokens in (4, 5, 6)
    assert worst[4] < 0.98 < worst[3]
    assert kept.num_speculative_tokens == 3
    none = choose(
        found.model_copy(update={"acceptances": (*accepted, accepted[0].model_copy(update={"histogram": USELESS}))}),
        ChooseSettings(),
    )
    assert none.num_speculative_tokens is None
    assert "where it gains least; 0.98x is the floor" in none.reason


def test_reading_prompts_is_what_both_have_in_common() -> None:
    """40 further tokens of 10 ms; a perfect draft's 7 tokens take 16 ms; the draft reads the prompt too. Kinds have their own.

    Of the others' prompts what is above a plain step counts: they are read in steps that all share.
    """
    firsts = tuple(
        FirstToken(method=method, kind=kind, seconds=seconds, later_tokens=later)  # type: ignore[arg-type]
        for kind, later, times in (("code", 40, (0.05, 0.07)), ("chat", 20, (0.02, 0.03)))
        for method, seconds in zip(("plain", "draft"), times, strict=True)
    )
    code = measurements(PERFECT, *costs(4))
    accepted = (*code.acceptances, code.acceptances[0].model_copy(update={"kind": "chat"}))
    choice = choose(code.model_copy(update={"first_tokens": firsts, "acceptances": accepted}), ChooseSettings())
    assert choice.expected is not None
    served = {(p.kind, p.concurrency): p.speedup for p in choice.expected.predictions}
    assert served["code", 1] == pytest.approx((400 + 50) / (40 / 7 * 16 + 70))
    assert served["code", 4] == pytest.approx((400 + 50 + 3 * 40) / (40 / 7 * 16 + 70 + 3 * 60))
    assert served["chat", 1] == pytest.approx((200 + 20) / (20 / 7 * 16 + 30))
    assert served["chat", 4] == pytest.approx((200 + 20 + 3 * 10) / (20 / 7 * 16 + 30 + 3 * 20))


def test_a_step_is_split_with_its_spread() -> None:
    (split,) = choose(measurements(PERFECT), ChooseSettings()).costs
    assert (split.verify, split.verify_low, split.verify_high) == pytest.approx((1.1, 0.99, 1.32))
    assert split.draft == pytest.approx((1.6 - 1.1) / 6)
    assert (split.draft_low, split.draft_high) == pytest.approx(((0.9 * 1.6 - 1.1) / 6, (1.2 * 1.6 - 1.1) / 6))
    assert split.steps == pytest.approx((1.1, 1.2, 1.3, 1.4, 1.5, 1.6))


def test_a_number_of_tokens_that_does_not_pay_is_not_said_to_be_no_faster() -> None:
    accepted = tuple(
        Acceptance(kind=kind, temperature=0.0, histogram=histogram)
        for kind, histogram in (("chat", PERFECT), ("code", (60, 30, 10, 0, 0, 0, 0)))
    )
    found = choose(Measurements(costs=costs(small=0.013, large=0.018), acceptances=accepted), ChooseSettings())
    assert max(found.considered, key=lambda item: item.speedup).num_speculative_tokens > (
        found.num_speculative_tokens or 0
    )
    assert "No other number of tokens that pays is expected to be more than 2% faster." in found.reason


@pytest.mark.parametrize(("in_one_pass", "way"), [(0.0105, "parallel"), (0.05, "draft")])
def test_the_better_way_of_drafting_is_taken(in_one_pass: float, way: str) -> None:
    """One pass accepts less at later positions, but costs nearly nothing; or far too much."""
    more = [
        StepCost(method="parallel", concurrency=1, num_speculative_tokens=k, seconds=in_one_pass, low=0.01, high=0.06)
        for k in (2, 6)
    ]
    accepted = Acceptance(kind="code", temperature=0.0, histogram=(30, 30, 20, 12, 5, 3, 0), way="parallel")
    base = measurements(MIDDLING, *more)
    both = base.model_copy(update={"acceptances": (*base.acceptances, accepted)})
    choice = choose(both, ChooseSettings())
    assert choice.way == way
    assert ("all in one pass (over" in choice.reason) == (way == "parallel")
    assert choice.expected is not None
    assert len(choice.expected.predictions) == 1
    assert {item.way for item in choice.considered} == {"draft", "parallel"}


def in_one_pass(*sizes: tuple[int, float, float]) -> Measurements:
    """Only in one pass; at each batch size the seconds of a step with two and with six tokens, plain's being 10 ms."""
    steps = [
        StepCost(method="parallel", concurrency=n, num_speculative_tokens=k, seconds=s, low=s, high=s)
        for n, small, large in sizes
        for k, s in ((2, small), (6, large))
    ]
    plain = [cost for n, _, _ in sizes for cost in costs(n) if cost.method in ("plain", "verify")]
    accepted = Acceptance(kind="code", temperature=0.0, histogram=MIDDLING, way="parallel")
    return Measurements(costs=(*plain, *steps), acceptances=(accepted,))


def test_in_one_pass_the_number_of_tokens_is_the_same_at_all_batch_sizes_or_none() -> None:
    """By itself each batch size would take another number; vLLM reads as many masks as it was started with."""
    choice = choose(in_one_pass((1, 0.010, 0.0101), (4, 0.012, 0.016), (16, 0.03, 0.06)), ChooseSettings())
    assert choice.way == "parallel"
    assert choice.num_speculative_tokens is not None
    assert set(choice.by_concurrency.values()) == {choice.num_speculative_tokens, 0}
    assert choice.by_concurrency[16] == 0
    assert choice.by_concurrency[1] == choice.by_concurrency[4] == choice.num_speculative_tokens


def test_a_smaller_number_in_one_pass_is_not_taken_because_many_batch_sizes_draft_nothing() -> None:
    """Only alone does it pay. Of five sizes four are plain either way, which must not hide what is lost at the first."""
    saturated = [(n, 0.05, 0.09) for n in (2, 4, 8, 16)]
    choice = choose(in_one_pass((1, 0.0112, 0.0112), *saturated), ChooseSettings())
    at = {c.num_speculative_tokens: c.speedup for c in choice.considered if c.concurrency == 1}
    taken = choice.by_concurrency[1]
    assert at[taken] >= 0.98 * max(at.values()) > 1.02 * at[1]


def test_a_gain_in_one_pass_that_is_had_alone_is_taken_however_many_sizes_draft_nothing() -> None:
    """1.05x at one of five sizes is 1.01x over all: above one number that pays nowhere, though by less than the indifference."""
    saturated = [(n, 0.05, 0.09) for n in (2, 4, 8, 16)]
    choice = choose(in_one_pass((1, 0.020, 0.0312), *saturated), ChooseSettings())
    at = {c.num_speculative_tokens: c.speedup for c in choice.considered if c.concurrency == 1}
    assert 1.03 <= max(at.values()) < 1.10
    assert choice.num_speculative_tokens is not None
    assert choice.by_concurrency == {1: choice.num_speculative_tokens, 2: 0, 4: 0, 8: 0, 16: 0}


def idle(concurrency: int, seconds: float) -> StepCost:
    """A step of an engine whose own proposer runs the draft though it proposes nothing."""
    return StepCost(
        method="draft", concurrency=concurrency, num_speculative_tokens=0, seconds=seconds, low=seconds, high=seconds
    )


def test_where_drafting_nothing_costs_something_its_speed_is_that_of_the_measured_step() -> None:
    steps = (idle(1, 0.0101), *SATURATED, idle(16, 0.0101))
    choice = choose(measurements(MIDDLING, *steps), ChooseSettings())
    assert choice.by_concurrency[1] > 0
    assert choice.by_concurrency[16] == 0
    assert choice.expected is not None
    assert {p.concurrency: p.speedup for p in choice.expected.predictions}[16] == pytest.approx(1 / 1.01)
    assert (
        "16 at a time: no draft tokens, 0.99x, as the engine's own proposer runs the draft all the same"
        in choice.reason
    )
    free = choose(measurements(MIDDLING, *SATURATED), ChooseSettings())
    assert choice.gain == pytest.approx(free.gain * (1 / 1.01) ** 0.5)


def test_a_draft_that_slows_the_engine_down_where_it_proposes_nothing_is_not_taken() -> None:
    costly = measurements(MIDDLING, idle(1, 0.0115), *SATURATED, idle(16, 0.0115))
    choice = choose(costly, ChooseSettings())
    assert choice.num_speculative_tokens is None
    assert choice.gain == 1.0
    assert (
        "16 at a time: drafting nothing would give 0.87x, as the engine's own proposer runs the draft" in choice.reason
    )
    assert "0.98x is the floor (--set floor=…)" in choice.reason
    allowed = choose(costly, ChooseSettings(floor=0.8))
    assert allowed.by_concurrency[1] > 0 == allowed.by_concurrency[16]


def test_a_draft_that_gains_less_at_one_size_than_it_costs_at_the_others_is_not_taken() -> None:
    """1.05x alone, and 0.985x at each of four sizes at which nothing is drafted: together that is below plain."""
    saturated = [cost for n in (2, 4, 8, 16) for cost in costs(n, small=0.031, large=0.073, verify=0.070)]
    steps = [*saturated, *(idle(n, 0.01 / 0.985) for n in (1, 2, 4, 8, 16))]
    choice = choose(measurements(MIDDLING, *steps, small=0.020, large=0.0312), ChooseSettings())
    assert choice.num_speculative_tokens is None
    assert "1 at a time: 2 draft tokens would give 1.05x; 2 at a time: no draft tokens, 0.9" in choice.reason


def test_a_draft_token_that_keeps_the_floor_is_drafted_where_drafting_nothing_does_not() -> None:
    """At sixteen one token gains 1 %: less than is asked for, but a loaded draft that proposes nothing loses 13 %."""
    steps = costs(16, plain=0.010, small=0.0215, large=0.0403)
    choice = choose(measurements(MIDDLING, idle(1, 0.0115), *steps, idle(16, 0.0115)), ChooseSettings())
    at = {c.num_speculative_tokens: c.speedup for c in choice.considered if c.concurrency == 16}
    assert 0.98 <= max(at.values()) < 1.03
    assert at[choice.by_concurrency[16]] == max(at.values()) > at[0]


def test_where_no_way_pays_the_better_one_is_told_of() -> None:
    base = measurements(USELESS)
    parallel = in_one_pass((1, 0.02, 0.03))
    both = Measurements(
        costs=(*base.costs, *parallel.costs[2:]), acceptances=(*base.acceptances, *parallel.acceptances)
    )
    choice = choose(both, ChooseSettings(min_gain=0.2))
    best = max(choice.considered, key=lambda item: item.speedup)
    assert choice.num_speculative_tokens is None
    assert best.way == "parallel"
    assert f"would give {best.speedup:.2f}x" in choice.reason


def test_a_useless_draft_is_refused() -> None:
    choice = choose(measurements(USELESS, *costs(16)), ChooseSettings())
    assert choice.num_speculative_tokens is None
    assert choice.expected is None
    assert choice.reason.startswith(
        "No draft, nor with the best setting, 1 draft token. 1 at a time: the best would give 0.91x"
    )


def test_a_saturated_engine_gets_no_draft() -> None:
    alone = Measurements(costs=SATURATED, acceptances=measurements((20, 20, 20, 20, 10, 5, 5)).acceptances)
    assert choose(alone, ChooseSettings()).num_speculative_tokens is None


def test_a_draft_that_pays_for_few_requests_is_switched_off_for_many() -> None:
    choice = choose(measurements(MIDDLING, *costs(4, large=0.020), *SATURATED), ChooseSettings())
    assert choice.num_speculative_tokens == choice.by_concurrency[1]
    assert choice.by_concurrency[1] >= choice.by_concurrency[4] > 0
    assert choice.by_concurrency[16] == 0
    assert choice.schedule[-1][2] == 0
    assert choice.schedule[0][0] == 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(choice.schedule))
    assert "16 at a time: no draft tokens" in choice.reason
    assert choice.expected is not None
    served = {(p.concurrency): p.speedup for p in choice.expected.predictions}
    assert served[16] == 1.0
    assert served[1] == pytest.approx(choice.expected.speedup)


def test_a_middling_draft_stops_where_acceptance_thins_out() -> None:
    choice = choose(measurements(MIDDLING), ChooseSettings())
    assert choice.num_speculative_tokens is not None
    assert 2 <= choice.num_speculative_tokens <= 5
    exact = choose(measurements(MIDDLING), ChooseSettings(indifference=0))
    assert max(by_tokens(exact).items(), key=lambda pair: pair[1])[0] == exact.num_speculative_tokens


def test_fewer_tokens_are_taken_where_more_gain_next_to_nothing() -> None:
    flat = measurements((400, 300, 200, 96, 2, 1, 1), plain=0.010, small=0.012, large=0.012)
    exact = choose(flat, ChooseSettings(indifference=0))
    choice = choose(flat, ChooseSettings())
    assert exact.num_speculative_tokens == 6
    assert choice.num_speculative_tokens == 3
    assert choice.expected is not None
    assert choice.expected.speedup == pytest.approx(by_tokens(choice)[3])


def test_batch_sizes_between_the_measured_ones_go_to_the_geometrically_nearer() -> None:
    assert schedule_of({1: 4, 4: 2, 16: 0}) == ((1, 2, 4), (3, 8, 2), (9, 16, 0))
    assert schedule_of({1: 3, 4: 3, 16: 1}) == ((1, 8, 3), (9, 16, 1))
    assert schedule_of({1: 3, 4: 3}) == ((1, 4, 3),)
    assert schedule_of({2: 5}) == ((1, 2, 5),)


def test_the_gain_that_is_asked_for_decides() -> None:
    useful = measurements(MIDDLING)
    best = max(by_tokens(choose(useful, ChooseSettings())).values())
    assert choose(useful, ChooseSettings(min_gain=best)).num_speculative_tokens is None


def test_no_step_is_promised_to_be_cheaper_than_a_plain_one() -> None:
    """The line through 29 and 38 ms at K = 2 and 6 is below 28 at K = 1."""
    choice = choose(measurements((50, 50, 0, 0, 0, 0, 0), plain=0.028, small=0.029, large=0.038), ChooseSettings())
    assert max(by_tokens(choice).values()) == pytest.approx(1.5)


def test_measurements_that_cannot_decide_are_refused() -> None:
    with pytest.raises(InputError, match="no steps"):
        choose(measurements((0, 0, 0, 0)), ChooseSettings())
    accepted = measurements((1, 1)).acceptances
    with pytest.raises(InputError, match="two different num_speculative_tokens are needed at concurrency 1"):
        choose(Measurements(costs=costs()[:3], acceptances=accepted), ChooseSettings())
    with pytest.raises(InputError, match="plain step at concurrency 1"):
        choose(Measurements(costs=costs()[1:], acceptances=accepted), ChooseSettings())
    with pytest.raises(InputError, match="no acceptance"):
        choose(Measurements(costs=costs(), acceptances=()), ChooseSettings())
