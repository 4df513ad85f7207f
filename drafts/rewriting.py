"""Self-distilled data in rewrite mode (arXiv 2410.09982): the target says the reference answer in its own words.

The target sees context, instruction and reference; the student never sees the reference. A rewrite that does not pass the
filters, or whose checkable answer is not the reference's, gives way to the reference: a sample is never dropped.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

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

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w]*\d)")
FINAL = re.compile(r"(?:####|\\boxed\{|(?:final )?answer(?: is|:))\s*(?P<rest>[^\n}]*)", re.I)


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


def checkable(answer: str) -> Decimal | None:
    """The number that an answer ends in: after ``####``, ``\\boxed{`` or "answer is" if there is one, else its last.

    Thousands separators are read over, decimals and exponents kept, units and currency signs around it ignored. None where
    there is no number.
    """
    final = list(FINAL.finditer(answer))
    marked = NUMBER.findall(final[-1]["rest"]) if final else []
    found = marked[:1] or NUMBER.findall(answer)[-1:]
    try:
        return Decimal(found[0].replace(",", "")) if found else None
    except InvalidOperation:
        return None


def agrees(rewrite: str, reference: str) -> bool:
    """Whether the checkable answers are equal; where the reference has a marked final number, the rewrite must have it."""
    wanted = checkable(reference) if FINAL.search(reference) else None
    return wanted is None or checkable(rewrite) == wanted


def select(rewrite: str, reference: str) -> tuple[str, str]:
    """(the answer to train on, ``rewrite`` or why the reference was taken instead)."""
    reason = fault(rewrite)
    if reason is None and not agrees(rewrite, reference):
        reason = "its answer is not the reference's"
    return (rewrite, "rewrite") if reason is None else (reference, reason)
