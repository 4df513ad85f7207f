import pytest

from loadtests.thresholds import check, failures, parse_threshold
from stages.errors import CheckFailed, InputError

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


@pytest.mark.parametrize("text", ["goodput", "goodput=1", "goodput<x", "<1", "a.b.goodput<1", ""])
def test_what_is_no_threshold_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="must be like"):
        parse_threshold(text)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'goodput'"):
        parse_threshold("godput<1")
    with pytest.raises(InputError, match=r"plain@closed-1, draft@closed-1"):
        failures(ROWS, [parse_threshold("goodput@closed-7<1")], "draft")
