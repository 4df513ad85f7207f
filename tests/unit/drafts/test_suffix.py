"""Suffix decoding takes the draft's place only where that is plainly better, and the reason says which and why."""

from typing import Any

import pytest

from drafts.choice import Choice, ChooseSettings
from drafts.choosing import choose
from drafts.measurements import ALL, Measurements, Served
from stages.errors import InputError
from tests.unit.drafts.test_choosing import MIDDLING, USELESS, costs, measurements

AT = ((1, "chat", 0.0), (1, "chat", 1.0), (4, ALL, 0.0), (4, ALL, 1.0))


def served(*speedups: float, **more: Any) -> tuple[Served, ...]:
    """Of chat by itself, then of all kinds four at a time; greedy, then sampled."""
    fields = {"num_speculative_tokens": 8, "num_drafts": 10, "num_draft_tokens": 40, "num_accepted_tokens": 15, **more}
    return tuple(
        Served(
            kind=kind, temperature=t, concurrency=n, speedup=speedup, low=0.9 * speedup, high=1.1 * speedup, **fields
        )
        for (n, kind, t), speedup in zip(AT, speedups, strict=True)
    )


def beside(histogram: tuple[int, ...], *speedups: float) -> Measurements:
    return measurements(histogram, *costs(4)).model_copy(update={"served": served(*speedups)})


def test_where_it_was_not_measured_nothing_changes() -> None:
    """Nor do measurements of before it was: they have no such field."""
    found = measurements(MIDDLING, *costs(4))
    old = found.model_dump(mode="json", exclude={"served"})
    assert choose(Measurements.model_validate(old), ChooseSettings()) == choose(found, ChooseSettings())
    assert "uffix" not in choose(found, ChooseSettings()).reason


@pytest.mark.parametrize("histogram", [MIDDLING, USELESS])
def test_where_it_wins_everywhere_it_is_taken_for_all_batch_sizes(histogram: tuple[int, ...]) -> None:
    choice = choose(beside(histogram, 4.0, 1.0, 2.5, 2.5), ChooseSettings())
    assert (choice.way, choice.num_speculative_tokens, choice.schedule) == ("suffix", 8, ((1, 4, 8),))
    assert choice.gain == pytest.approx((2.0 * 2.5) ** 0.5)
    assert choice.reason.startswith(
        "Suffix decoding, and no draft. As served, 1 at a time: 2.00x plain; 4 at a time: 2.50x"
    )
    assert "1.00x where it gains least (chat, T = 1, 1 at a time)" in choice.reason
    assert ("no draft pays" in choice.reason) == (histogram == USELESS)
    assert choice.expected is not None
    assert choice.expected.speedup == pytest.approx(2.0)
    assert choice.expected.mean_acceptance_length == pytest.approx(2.5)
    assert choice.expected.acceptance_rate == pytest.approx(15 / 40)
    assert [(p.kind, p.concurrency, p.speedup) for p in choice.expected.predictions][-1] == (ALL, 4, 2.5)


def of_the_draft(choice: Choice) -> tuple[Any, ...]:
    own = tuple(item for item in choice.considered if item.way != "suffix")
    return choice.way, choice.num_speculative_tokens, choice.schedule, choice.expected, choice.costs, own


@pytest.mark.parametrize(
    ("speedups", "said"),
    [
        ((9.0, 0.8, 3.0, 3.0), "but 0.80x where it gains least (chat, T = 1, 1 at a time); 0.98x is the floor."),
        ((3.0, 3.0, 3.0, 0.7), "but 0.70x where it gains least (all kinds together, T = 1, 4 at a time)"),
        ((1.02, 1.0, 1.0, 1.0), "1.01x at best, but at least 1.03x is asked for."),
        (
            (1.1, 1.1, 1.1, 1.1),
            "would give 1.10x over all batch sizes, 1.10x at best, but that is not more than 2% above",
        ),
    ],
)
def test_where_it_is_not_taken_the_draft_is_as_without_it_and_the_reason_says_why(
    speedups: tuple[float, ...], said: str
) -> None:
    alone = choose(measurements(MIDDLING, *costs(4)), ChooseSettings())
    choice = choose(beside(MIDDLING, *speedups), ChooseSettings())
    assert of_the_draft(choice) == of_the_draft(alone)
    assert choice.reason.startswith(alone.reason + " Suffix decoding would give ")
    assert said in choice.reason
    assert {item.concurrency for item in choice.considered if item.way == "suffix"} == {1, 4}


def test_where_neither_pays_both_are_told_of() -> None:
    choice = choose(beside(USELESS, 1.2, 0.7, 1.1, 0.6), ChooseSettings())
    assert choice.num_speculative_tokens is None
    assert choice.reason.startswith("No draft, nor with the best setting")
    assert choice.reason.endswith(
        "Suffix decoding would give 0.86x over all batch sizes, 0.92x at best, but at least 1.03x is asked for."
    )


def test_a_lead_within_what_measuring_resolves_is_none() -> None:
    gain = choose(measurements(MIDDLING, *costs(4)), ChooseSettings()).gain
    for ahead, way in ((1.019, "draft"), (1.021, "suffix")):
        assert choose(beside(MIDDLING, *4 * (gain * ahead,)), ChooseSettings()).way == way


def test_steps_that_proposed_nothing_have_no_acceptance() -> None:
    nothing = served(2.0, 2.0, 2.0, 2.0, num_drafts=0, num_draft_tokens=0, num_accepted_tokens=0)
    choice = choose(measurements(USELESS, *costs(4)).model_copy(update={"served": nothing}), ChooseSettings())
    assert choice.expected is not None
    assert (choice.expected.acceptance_rate, choice.expected.mean_acceptance_length) == (None, None)


def test_a_batch_size_at_which_it_was_not_served_is_named() -> None:
    found = measurements(MIDDLING, *costs(16)).model_copy(update={"served": served(2.0, 2.0, 2.0, 2.0)})
    with pytest.raises(InputError, match="not served at concurrency 16; run 'understudy measure' again"):
        choose(found, ChooseSettings())
