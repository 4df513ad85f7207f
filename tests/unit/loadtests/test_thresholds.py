from contextlib import nullcontext

import pytest

from loadtests.running import check_ready
from loadtests.schedule import turns_of
from loadtests.settings import LoadSettings, Shape
from loadtests.thresholds import check, check_planned, failures, parse_threshold
from stages.errors import CheckFailed, InputError
from tests.unit.loadtests.asking import PACKAGED

ROWS = [
    {
        "target": "plain",
        "condition": "closed-1",
        "step": False,
        "goodput": 0.9,
        "requests": 10,
        "errors": 0,
        "gain": None,
    },
    {
        "target": "draft",
        "condition": "closed-1",
        "step": False,
        "goodput": 1.0,
        "requests": 10,
        "errors": 1,
        "gain": 1.5,
    },
    {
        "target": "draft",
        "condition": "open-0.5",
        "step": False,
        "goodput": 0.8,
        "requests": 10,
        "errors": 0,
        "gain": 0.9,
    },
    {"target": "draft", "condition": "step-9", "step": True, "goodput": 0.0, "requests": 10, "errors": 9, "gain": 0.1},
]


@pytest.mark.parametrize(
    ("text", "crossed"),
    [
        ("goodput<0.8", 0),
        ("goodput<=0.8", 1),
        ("goodput < 0.95", 1),
        ("goodput@closed-1<0.95", 0),
        ("plain.goodput<0.95", 1),
        ("gain<1.6", 2),
        ("gain@open-0.5<1", 1),
        ("error_rate>0.05", 1),
        ("errors>=1", 1),
        ("errors@step-9>0", 1),  # steps are run until they break: only who names one means it
    ],
)
def test_any_condition_that_crosses_a_threshold_fails(text: str, crossed: int) -> None:
    assert len(failures(ROWS, [parse_threshold(text)], "draft")) == crossed


def test_a_figure_that_is_not_there_was_not_kept() -> None:
    assert failures(ROWS, [parse_threshold("plain.gain<1")], "draft") == [
        "plain.gain<1: plain, closed-1 has no such figure"
    ]


def test_the_answer_no_has_an_exit_code_of_its_own() -> None:
    check(ROWS, [parse_threshold("goodput<0.5")], "draft")
    with pytest.raises(CheckFailed, match=r"goodput<0.95: draft, open-0.5 has 0.8") as caught:
        check(ROWS, [parse_threshold("goodput<0.95"), parse_threshold("errors>0")], "draft")
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["goodput", "goodput=1", "goodput<x", "goodput<nan", "goodput<inf", "<1", "a.b.goodput<1", ""]
)
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be like"):
        parse_threshold(text)


SETTINGS = LoadSettings(
    users=(1, 4),
    rates=(0.5,),
    turns=1,
    requests_per_turn=1,
    turn_s=1,
    shape=Shape(kind="step", level=1, to=2),
    loop="open",
)


@pytest.mark.parametrize(
    ("text", "targets", "refused"),
    [
        ("goodput<1", ["plain"], False),
        ("goodput@closed-4<1", ["plain", "draft"], False),
        ("plain.goodput@open-0.5<1", ["plain", "draft"], False),
        ("errors@step-2>0", ["plain"], False),
        ("goodput@closed-2<1", ["plain", "draft"], True),
        ("goodput@ramp<1", ["plain"], True),
        ("draft.goodput<1", ["plain"], True),
        ("drft.goodput<1", ["plain", "draft"], True),
    ],
)
def test_what_will_not_be_run_is_refused_before_it_is_waited_for(text: str, targets: list[str], refused: bool) -> None:
    expected = pytest.raises(InputError, match=r"is not run; there are plain@closed-1") if refused else nullcontext()
    with expected:
        check_ready(SETTINGS, [parse_threshold(text)], targets)


def test_a_threshold_of_all_conditions_needs_one_that_is_no_step() -> None:
    only_steps = SETTINGS.model_copy(update={"users": (), "rates": ()})
    with pytest.raises(InputError, match="is not run; there are plain@step-1, plain@step-2"):
        check_planned(turns_of(only_steps, PACKAGED), ["plain"], [parse_threshold("goodput<1")])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'goodput'"):
        parse_threshold("godput<1")


def test_a_step_that_was_not_reached_has_kept_nothing() -> None:
    assert failures(ROWS, [parse_threshold("goodput@step-7<1")], "draft") == ["goodput@step-7<1: was not reached"]
