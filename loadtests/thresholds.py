"""Thresholds given on the command line: ``goodput<0.95`` fails a run in which any condition's goodput is below 0.95."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.schedule import Turn
from stages.errors import CheckFailed, InputError

FORM = re.compile(
    r"\s*(?:(?P<target>\w+)\.)?(?P<figure>\w+)(?:@(?P<condition>[\w.-]+?))?\s*(?P<sign><=|>=|<|>)\s*(?P<limit>\S+)\s*"
)
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
TIMES = tuple(f"{name}_p{share}" for name in ("ttft_s", "tpot_s", "gap_s", "e2e_s", "late_s") for share in (50, 95, 99))
FIGURES = (
    "goodput", "errors", "error_rate", "gain", "requests_per_s", "tokens_per_s", "good_per_s", "acceptance_rate",
    "mean_acceptance_length", *TIMES,
)  # fmt: skip


@dataclass(frozen=True)
class Threshold:
    """A condition under which a run fails.

    Attributes:
        target: the server it is about; None is the draft where there is one.
        condition: e.g. ``closed-4``; None is each.
    """

    text: str
    figure: str
    sign: str
    limit: float
    target: str | None = None
    condition: str | None = None


def parse_threshold(text: str) -> Threshold:
    """Reads ``[target.]figure[@condition] sign number``.

    Raises:
        InputError: it is not of that form, or the figure is not known.
    """
    found = FORM.fullmatch(text)
    try:
        limit = float(found["limit"]) if found else 0.0
    except ValueError:
        limit = math.nan
    if not found or not math.isfinite(limit):
        raise InputError(f"--fail-if {text}: must be like 'goodput<0.95' or 'draft.ttft_s_p95@closed-4>0.5'")
    if found["figure"] not in FIGURES:
        near = difflib.get_close_matches(found["figure"], FIGURES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"known figures: {', '.join(FIGURES)}"
        raise InputError(f"--fail-if {text}: unknown figure '{found['figure']}': {hint}")
    return Threshold(text.strip(), found["figure"], found["sign"], limit, found["target"], found["condition"])


def _value(row: dict[str, Any], figure: str) -> float | None:
    if figure == "error_rate":
        return row["errors"] / row["requests"] if row["requests"] else None
    value = row.get(figure)
    return None if value is None else float(value)


def _own(rows: Sequence[dict[str, Any]], threshold: Threshold, usual: str) -> list[dict[str, Any]]:
    """The rows that a threshold is about; steps are run until they break, so only who names one means it."""
    target = threshold.target or usual
    return [
        row for row in rows
        if row["target"] == target and threshold.condition in (None, row["condition"])
        and not (row["step"] and threshold.condition is None)
    ]  # fmt: skip


def check_planned(turns: Sequence[Turn], targets: Sequence[str], thresholds: Sequence[Threshold]) -> None:
    """Refuses thresholds about what will not be run, before anything is.

    Args:
        targets: names of the servers, plain first; the last is the one that a threshold is about if it names none.

    Raises:
        InputError: a threshold is about a server or a condition that is not planned.
    """
    rows = [{"target": target, "condition": turn.condition, "step": turn.step} for target in targets for turn in turns]
    for threshold in thresholds:
        if not _own(rows, threshold, targets[-1]):
            known = dict.fromkeys(f"{row['target']}@{row['condition']}" for row in rows)
            raise InputError(f"--fail-if {threshold.text}: is not run; there are {', '.join(known)}")


def failures(rows: Sequence[dict[str, Any]], thresholds: Sequence[Threshold], usual: str) -> list[str]:
    """One line for each condition that crosses a threshold; a figure that is not there cannot have been kept.

    Nor can one of a step that was not reached, because the server had broken at a lower one.

    Args:
        usual: the server that a threshold is about if it names none.
    """
    lines = []
    for threshold in thresholds:
        own = _own(rows, threshold, usual)
        if not own:
            lines.append(f"{threshold.text}: was not reached")
        for row in own:
            value = _value(row, threshold.figure)
            where = f"{row['target']}, {row['condition']}"
            if value is None:
                lines.append(f"{threshold.text}: {where} has no such figure")
            elif SIGNS[threshold.sign](value, threshold.limit):
                lines.append(f"{threshold.text}: {where} has {value:.4g}")
    return lines


def check(rows: Sequence[dict[str, Any]], thresholds: Sequence[Threshold], usual: str) -> None:
    """Raises CheckFailed, all crossings in one line; see ``failures``."""
    if lines := failures(rows, thresholds, usual):
        raise CheckFailed("; ".join(lines))
