"""Says in one paragraph what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drafts.choice import Choice, ChooseSettings, Considered, Expected
from drafts.measurements import ALL, Served, Way

SAID: dict[Way, str] = {"draft": "one after another", "parallel": "all in one pass"}


def _draft_tokens(count: int) -> str:
    return f"{count} draft token{'' if count == 1 else 's'}"


def _why_not(best: Considered, settings: ChooseSettings) -> str:
    """Why even the best number of draft tokens is not taken."""
    if best.pays(settings):
        return f"{_draft_tokens(best.num_speculative_tokens)} would give {best.speedup:.2f}x, but one pass has one number for all"
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
        f"No other number of tokens that pays is expected to be more than {settings.indifference:.0%} faster."
    )


def ways_compared(gains: Mapping[Way, float], way: Way) -> str:
    """Which way of drafting was taken, and what each would give over all batch sizes."""
    compared = ", ".join(f"{SAID[found]} {gain:.2f}x" for found, gain in gains.items())
    return f"Draft tokens are proposed {SAID[way]} (over all batch sizes {compared})."


def _where(served: Served) -> str:
    kind = "all kinds together" if served.kind == ALL else served.kind
    return f"{kind}, T = {served.temperature:g}, {served.concurrency} at a time"


def suffix_refused(gain: float, least: Served, drafted: Choice, settings: ChooseSettings) -> str | None:
    """Why suffix decoding does not take the draft's place; None where it does.

    Args:
        gain: its speed-up over all batch sizes.
        least: where it gains least.
    """
    if gain < 1 + settings.min_gain:
        return f"at least {1 + settings.min_gain:.2f}x is asked for"
    if least.speedup < settings.floor:
        return f"{least.speedup:.2f}x where it gains least ({_where(least)}); {settings.floor:.2f}x is the floor"
    if gain <= drafted.gain * (1 + settings.indifference):
        return f"that is not more than {settings.indifference:.0%} above the draft's {drafted.gain:.2f}x"
    return None


def suffix_taken(taken: Choice, least: Served, drafted: Choice) -> str:
    """Suffix decoding in the draft's place, in one paragraph."""
    own = [item for item in taken.considered if item.way == "suffix"]
    parts = "; ".join(f"{item.concurrency} at a time: {item.speedup:.2f}x plain" for item in own)
    draft = f"the draft would give {drafted.gain:.2f}x" if drafted.num_speculative_tokens else "no draft pays"
    length = taken.expected.mean_acceptance_length if taken.expected else None
    accepted = "" if length is None else f" Mean acceptance length {length:.2f} where it proposes something."
    return (
        f"Suffix decoding, and no draft. As served, {parts}; {least.speedup:.2f}x where it gains least ({_where(least)}). Over all "
        f"batch sizes {taken.gain:.2f}x; {draft} with its best numbers of draft tokens.{accepted}"
    )
