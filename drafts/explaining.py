"""Says in one paragraph what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drafts.choice import ChooseSettings, Considered, Expected
from drafts.measurements import Way

SAID: dict[Way, str] = {"draft": "one after another", "parallel": "all in one pass"}


def _draft_tokens(count: int) -> str:
    return f"{count} draft token{'' if count == 1 else 's'}"


def _why_not(best: Considered, settings: ChooseSettings) -> str:
    """Why even the best number of draft tokens is not taken."""
    if best.speedup < 1 + settings.min_gain:
        return f"the best would give {best.speedup:.2f}x, at least {1 + settings.min_gain:.2f}x is asked for"
    where = f"{best.worst:.2f}x where it gains least"
    return f"the best would give {best.speedup:.2f}x, but {where}; {settings.floor:.2f}x is the floor"


def reason(
    considered: Sequence[Considered], picked: dict[int, int], expected: Expected | None, settings: ChooseSettings
) -> str:
    """What was decided for one way of drafting."""
    bests = {n: max((i for i in considered if i.concurrency == n), key=lambda item: item.speedup) for n in picked}
    if expected is None:
        would = "; ".join(f"{n} at a time: {_why_not(b, settings)}" for n, b in bests.items())
        tokens = next(iter(bests.values())).num_speculative_tokens
        return f"No draft, nor with the best setting, {_draft_tokens(tokens)}. {would[0].upper()}{would[1:]}."
    speedup_of = {(item.concurrency, item.num_speculative_tokens): item.speedup for item in considered}
    parts = []
    for n, tokens in picked.items():
        if tokens:
            parts.append(f"{n} at a time: {_draft_tokens(tokens)}, {speedup_of[n, tokens]:.2f}x plain")
        else:
            parts.append(f"{n} at a time: no draft tokens ({_why_not(bests[n], settings)})")
    return (
        f"Expected, {'; '.join(parts)}. Mean acceptance length {expected.mean_acceptance_length:.2f}. "
        f"No other number of tokens is expected to be more than {settings.indifference:.0%} faster."
    )


def ways_compared(gains: Mapping[Way, float], way: Way) -> str:
    """Which way of drafting was taken, and what each would give over all batch sizes."""
    compared = ", ".join(f"{SAID[found]} {gain:.2f}x" for found, gain in gains.items())
    return f"Draft tokens are proposed {SAID[way]} (over all batch sizes {compared})."
