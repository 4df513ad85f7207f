from __future__ import annotations

from decimal import Decimal

import pytest

from drafts.prompts import Message, Prompt
from drafts.rewriting import checkable, fault, guided, select


@pytest.mark.parametrize(
    ("answer", "numbers", "unit"),
    [
        ("So 3 apples and 4 pears.\n#### 7", ["7"], None),
        ("He pays $1,234.50 in all. The answer is $1,234.50.", ["1234.50"], None),
        ("The final answer: 12.5 km, after 3 hours", ["12.5"], "km"),
        ("\\boxed{-0.75} as shown in step 2", ["-0.75"], None),
        ("It is \\boxed{\\frac{1}{2}}.", ["1", "2"], None),
        ("The answer is 2 + 3 = 5 apples because 3 were added", ["5"], "apple"),
        ("It takes 45 minutes.", ["45"], "minute"),
        ("about 6.02e23 per mole", ["6.02e23"], None),
        ("They meet at 10:30", ["10", "30"], None),
        ("It grew by 12%", ["12"], "%"),
        ("nothing to count", None, None),
    ],
)
def test_the_number_that_an_answer_ends_in(answer: str, numbers: list[str] | None, unit: str | None) -> None:
    expected = None if numbers is None else (tuple(map(Decimal, numbers)), unit)
    assert checkable(answer) == expected


@pytest.mark.parametrize(
    ("rewrite", "reference", "is_kept"),
    [
        ("It is 43.", "42", False), ("It is 42.", "42", True), ("It is 42 km.", "42 km", True), ("It is 42 m.", "42 km", False),
        ("The answer is 1/3", "answer: 1/2", False), ("One half, so 1/2", "answer: 1/2", True),
        ("at 10:45", "The answer is 10:30", False), ("the answer: 10:30 sharp", "The answer is 10:30", True),
        ("\\boxed{\\frac{1}{3}}", "\\boxed{\\frac{1}{2}}", False), ("\\boxed{\\frac{1}{2}}", "\\boxed{\\frac{1}{2}}", True),
        ("12+3=15, so the answer is C", "12+3=15, so the answer is B", False), ("The answer is B.", "The answer is: b", True),
        ("It must be B", "The answer is B", True), ("It must be C", "The answer is B", False),
        ("Half of 4 is 2, the answer: two apples", "answer: Two apples.", True), ("answer: it depends on the 7 of them, "
        "and on more than that", "Answer: they are called by 3 names in all of these places", False),
        ("The answer is B", "The answer is A", False), ("It is A", "The answer is: A", True),
        ("The answer is C++", "answer: C", False), ("It must be a whale", "The answer is the whale", True),
        ("So it is 5.", "The answer is:\n5", True), ("So it is 6.", "The answer is as follows: 5", False),
        ("The answer is, therefore, 5", "#### 5", True), ("B", "The answer is \\boxed{B}", True),
        ("\\boxed{B}", "The answer is $\\boxed{\\text{B}}$.", True), ("\\boxed{C}", "The answer is \\boxed{B}", False),
        ("the answer is \\boxed{\\frac{1}{3}}", "the answer is \\boxed{\\frac{1}{2}}", False),
        ("Quite other words", "#### Notes\nwhat to know", True),
        ("Anything at all", "answer: whatever it takes to say this in a few more words", True),
        ("that makes 5", "#### 5 apples", True), ("12 of them", "There were 3, then 4 came.", True),
    ],
)  # fmt: skip
def test_numbers_fractions_and_units_are_compared(rewrite: str, reference: str, is_kept: bool) -> None:
    assert (select(rewrite, reference)[1] == "rewrite") == is_kept


@pytest.mark.parametrize(
    "rewrite",
    [
        "", "  \n", "As the reference answer says, 7.", "The provided solution is right.", "Here is my rewritten answer: 7",
        "In my own words: seven", "Assistant: 7", "7\n<|user|> and now?", "Human: what?",
    ],
)  # fmt: skip
def test_rewrites_that_give_themselves_away_are_refused(rewrite: str) -> None:
    assert fault(rewrite) is not None
    answer, why = select(rewrite, "the reference")
    assert (answer, why != "rewrite") == ("the reference", True)


@pytest.mark.parametrize("rewrite", ["Returns the system path.", "The user is asked twice.", "It gives the answer 7."])
def test_ordinary_sentences_pass(rewrite: str) -> None:
    assert select(rewrite, "the reference") == (rewrite, "rewrite")


def test_a_checkable_answer_must_be_the_references() -> None:
    reference = "6 * 200 = 1,200\n#### 1,200"
    assert select("Six times 200 gives 1200.0", reference)[1] == "rewrite"
    assert select("Six times 200 gives 120", reference) == (reference, "its answer is not the reference's")
    assert select("Six times two hundred", reference)[0] == reference


def test_the_target_sees_the_reference_and_plain_text_has_no_instruction() -> None:
    chat = Prompt(messages=(Message(role="user", content="What is 3+4?"),), reference="It is 7.")
    shown = guided(chat)
    assert shown is not None
    assert "What is 3+4?" in shown.text
    assert "It is 7." in shown.text
    assert guided(Prompt(prompt="def f(", reference="x): pass")) is None
    assert guided(Prompt(messages=(Message(role="user", content="x"),))) is None
