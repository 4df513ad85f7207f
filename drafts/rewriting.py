"""Self-distilled data in rewrite mode (arXiv 2410.09982): the target says the reference answer in its own words.

The target sees context, instruction and reference; the student never sees the reference. A rewrite that does not pass the
filters, or whose checkable answer is not the reference's, gives way to the reference: a sample is never dropped.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from drafts.prompts import Message, Prompt

GUIDANCE = (
    "{instruction}\n\nHere is a reference answer:\n\n{reference}\n\n"
    "Give the same answer in your own words. Write the answer only."
)

SPEAKS_OF_THE_REFERENCE = re.compile(r"\b(?:reference|provided|given|original) (?:answer|response|solution)\b", re.I)
SPEAKS_OF_ITSELF = re.compile(
    r"\b(?:my (?:own )?(?:answer|response|version|words)|(?:in|with) my own words|"
    r"here(?:'s| is) (?:my|a|the) (?:rewritten |rephrased |reworded )?(?:answer|response|version))\b",
    re.I,
)
ANNOUNCES_A_TURN = re.compile(r"^\s*(?:<\|?)?(?:user|assistant|human|system|ai)(?:\|?>|\s*:)", re.I | re.M)

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d++)(?:\.\d++)?(?:[eE][-+]?\d++)?(?!\w*\d)")
TOGETHER = re.compile(rf"{NUMBER.pattern}(?:\s*[/:]\s*{NUMBER.pattern})*")
"""Numbers that say one thing: a fraction, a ratio, a time of day."""
BOXED = re.compile(r"\\boxed\{(?P<said>(?:[^{}\n]|\{[^{}\n]*\})*)")
FINAL = re.compile(r"(?:####(?=[^\n]*\d)|(?:final )?answer(?: is|:))\s*(?P<said>[^\n}]*)", re.I)
GOES_ON = re.compile(r"[,.;!?](?=\s|$)|\b(?:because|since|as|so|which|after|when)\b", re.I)
"""Where what is said after the final answer begins."""
UNIT = re.compile(r"[\s}\\]*([%°]|[a-zµμΩ]+(?:[/^][a-z0-9]+)*)", re.I)
NO_UNITS = re.compile(
    r"and|are|at|by|each|for|from|in|is|left|more|of|on|or|per|that|then|to|total|with|altogether|text", re.I
)
"""Words behind a number that are none."""
ALONE = re.compile(rf"\W*{NUMBER.pattern}\W*(?:[^\W\d]+\W*)?")
"""A reference that is nothing but a number, perhaps with its unit."""

ARTICLES = ("a", "an", "the")
FEW_WORDS = 3
"""A final answer of more words cannot be compared: it can be said in other words."""


class Checkable(NamedTuple):
    """What an answer ends in, as far as it can be compared.

    Attributes:
        numbers: one, or those of a fraction, a ratio, a time of day; thousands separators read over, decimals and exponents kept.
        unit: the word or sign behind them, in the singular; None where there is none. Signs before a number (``$``) are none.
    """

    numbers: tuple[Decimal, ...]
    unit: str | None


def guided(prompt: Prompt) -> Prompt | None:
    """The prompt that shows the target the reference; None for text to be continued, which cannot be asked for anew."""
    if prompt.messages is None or prompt.reference is None:
        return None
    *before, last = prompt.messages
    asked = GUIDANCE.format(instruction=last.content, reference=prompt.reference)
    return Prompt(messages=(*before, Message(role=last.role, content=asked)), kind=prompt.kind, source=prompt.source)


def fault(rewrite: str) -> str | None:
    """Why a rewrite is refused whatever it answers; None if it is not."""
    if not rewrite.strip():
        return "it is empty"
    for pattern, reason in (
        (SPEAKS_OF_THE_REFERENCE, "it mentions the reference answer"),
        (SPEAKS_OF_ITSELF, "it speaks of its own response"),
        (ANNOUNCES_A_TURN, "it announces whose turn it is"),
    ):
        if pattern.search(rewrite):
            return reason
    return None


def checkable(answer: str) -> Checkable | None:
    """What an answer ends in: after ``####``, in ``\\boxed{}`` or after "answer is" if there is such, else its last number.

    None where there is no number.
    """
    marked = _marked(answer)
    said = "" if marked is None else marked
    numbers = list(NUMBER.finditer(said))
    if marked is None:
        said = answer
        together = list(TOGETHER.finditer(answer))
        numbers = list(NUMBER.finditer(answer, together[-1].start())) if together else []
    try:
        values = tuple(Decimal(number[0].replace(",", "")) for number in numbers)
    except InvalidOperation:
        return None
    return Checkable(values, _unit(said[numbers[-1].end() :])) if numbers else None


def _marks(answer: str) -> list[re.Match[str]]:
    """Where an answer marks its final one; of "answer is \\boxed{x}" the box ends last."""
    return [*BOXED.finditer(answer), *FINAL.finditer(answer)]


def _marked(answer: str) -> str | None:
    """What an answer marks as its final one; None where it marks nothing that says anything."""
    marks = _marks(answer)
    if not marks:
        return None
    last = max(marks, key=lambda mark: mark.end())
    said = GOES_ON.split(last["said"])[0].rpartition("=")[2]
    return said if _words(said) else None


def _words(text: str) -> list[str]:
    """The words of a text, without case, signs, and LaTeX's commands."""
    parts = re.findall(r"[\w+#]+", re.sub(r"\\[A-Za-z]+", " ", text).casefold())
    return [part for part in parts if part.strip("+#")]


def _but_articles(words: list[str]) -> list[str]:
    """Without articles, where there are other words: "A" alone is a choice."""
    return [word for word in words if word not in ARTICLES] or words


def _says(rewrite: str, wanted: list[str]) -> bool:
    """Whether a rewrite has these words as its final answer, or, where it marks none, anywhere."""
    marked = _marked(rewrite)
    if marked is not None:
        return _but_articles(_words(marked)) == wanted
    words = _words(rewrite)
    words = words if set(wanted) & set(ARTICLES) else _but_articles(words)
    return any(words[place : place + len(wanted)] == wanted for place in range(len(words)))


def _unit(behind: str) -> str | None:
    """The unit at the beginning of what stands behind a number."""
    found = UNIT.match(behind)
    word = found[1].casefold() if found else ""
    singular = word.removesuffix("s") if len(word) > 3 else word
    return None if NO_UNITS.fullmatch(word) else singular or None


def agrees(rewrite: str, reference: str) -> bool:
    """Whether the checkable answers are equal, units included where both have one.

    A reference is checked that marks its final answer, or that is a number and nothing else: a rewrite must have that. Where what
    it marks is no number but a letter or a few words, those must be the rewrite's.
    """
    wanted = checkable(reference) if _marks(reference) or ALONE.fullmatch(reference) else None
    if wanted is None:
        words = _but_articles(_words(_marked(reference) or ""))
        return not 0 < len(words) <= FEW_WORDS or _says(rewrite, words)
    found = checkable(rewrite)
    if found is None or found.numbers != wanted.numbers:
        return False
    return None in (found.unit, wanted.unit) or found.unit == wanted.unit


def select(rewrite: str, reference: str) -> tuple[str, str]:
    """(the answer to train on, ``rewrite`` or why the reference was taken instead)."""
    reason = fault(rewrite)
    if reason is None and not agrees(rewrite, reference):
        reason = "its answer is not the reference's"
    return (rewrite, "rewrite") if reason is None else (reference, reason)
