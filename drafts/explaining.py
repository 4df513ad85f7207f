"""Says in one paragraph what was chosen and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from drafts.choice import Choice, ChooseSettings, Considered
from drafts.measurements import ALL, Served, Way
from server.pair import Expected

SAID: dict[Way, str] = {"draft": "one after another", "parallel": "all in one pass"}


def _draft_tokens(count: int) -> str:
    return f"{count} draft token{'' if count == 1 else 's'}"


def _why_not(options: Sequence[Considered], settings: ChooseSettings) -> str:
    """Why even the best number of draft tokens is not taken.

    Args:
        options: what was considered at one concurrency.
    """
    best = _best(options)
    if best.pays(settings):
        return f"{_draft_tokens(best.num_speculative_tokens)} would give {best.speedup:.2f}x, but one pass has one number for all"
    if best.speedup < 1 + settings.min_gain:
        return f"the best would give {best.speedup:.2f}x, at least {1 + settings.min_gain:.2f}x is asked for"
    where = f"{best.worst:.2f}x where it gains least"
    return f"the best would give {best.speedup:.2f}x, but {where}; {settings.floor:.2f}x is the floor"


def _best(options: Sequence[Considered]) -> Considered:
    """What gains most among those that draft."""
    return max((item for item in options if item.num_speculative_tokens), key=lambda item: item.speedup)


def _idle(options: Sequence[Considered]) -> Considered | None:
    """Drafting nothing with a loaded draft, where that was timed."""
    return next((item for item in options if item.num_speculative_tokens == 0), None)


IDLE = "the engine's own proposer runs the draft all the same"


def _nothing(options: Sequence[Considered], settings: ChooseSettings) -> str:
    """Why nothing is drafted at a concurrency, and what that costs."""
    idle, why = _idle(options), _why_not(options, settings)
    return f"no draft tokens ({why})" if idle is None else f"no draft tokens, {idle.speedup:.2f}x, as {IDLE} ({why})"


def _no_draft(options: Sequence[Considered], settings: ChooseSettings) -> str:
    """Why there is no draft, as far as one concurrency says."""
    idle, best = _idle(options), _best(options)
    if idle is not None and idle.worst < settings.floor and best.worst < settings.floor:
        return (
            f"drafting nothing would give {idle.worst:.2f}x, as {IDLE}, and {_draft_tokens(best.num_speculative_tokens)} "
            f"{best.worst:.2f}x; {settings.floor:.2f}x is the floor (--set floor=…)"
        )
    if best.pays(settings):
        return f"{_draft_tokens(best.num_speculative_tokens)} would give {best.speedup:.2f}x"
    return _why_not(options, settings) if idle is None else _nothing(options, settings)


def _beyond(picked: dict[int, int]) -> str:
    """What is drafted for batches larger than any that was measured, where that is anything."""
    tokens = picked[max(picked)]
    return f"Larger batches were not measured; they get {tokens} as well (measure: concurrencies). " if tokens else ""


def reason(
    considered: Sequence[Considered], picked: dict[int, int], expected: Expected | None, settings: ChooseSettings
) -> str:
    """What was decided for one way of drafting."""
    options = {n: [item for item in considered if item.concurrency == n] for n in picked}
    if expected is None:
        would = "; ".join(f"{n} at a time: {_no_draft(found, settings)}" for n, found in options.items())
        tokens = _best(next(iter(options.values()))).num_speculative_tokens
        return f"No draft, nor with the best setting, {_draft_tokens(tokens)}. {would[0].upper()}{would[1:]}."
    speedup_of = {(item.concurrency, item.num_speculative_tokens): item.speedup for item in considered}
    parts = []
    for n, tokens in picked.items():
        if tokens:
            parts.append(f"{n} at a time: {_draft_tokens(tokens)}, {speedup_of[n, tokens]:.2f}x plain")
        else:
            parts.append(f"{n} at a time: {_nothing(options[n], settings)}")
    return (
        f"Expected, {'; '.join(parts)}. {_beyond(picked)}Mean acceptance length {expected.mean_acceptance_length:.2f}. "
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
