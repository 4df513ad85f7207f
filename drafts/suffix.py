"""Whether suffix decoding takes the draft's place, judged by how it was served. Pure.

It is taken for all batch sizes or not at all: vLLM's proposer for it insists on the number of tokens that it was started with, and
an engine with ``num_speculative_tokens_per_batch_size`` would end at the first batch for which that gives another one.
"""

from __future__ import annotations

from drafts.choice import Choice, ChooseSettings, Considered
from drafts.explaining import suffix_refused, suffix_taken
from drafts.measurements import Measurements, Served
from drafts.predicting import geometric_mean
from server.pair import Expected, Prediction
from stages.errors import InputError


def weigh(drafted: Choice, measurements: Measurements, settings: ChooseSettings) -> Choice:
    """The draft's choice or suffix decoding in its place; either says what the other would give.

    Raises:
        InputError: suffix decoding was served at some of the concurrencies only.
    """
    if not measurements.served:
        return drafted
    considered = tuple(_at(measurements, n) for n in measurements.concurrencies)
    tokens, least = considered[0].num_speculative_tokens, min(measurements.served, key=lambda item: item.speedup)
    taken = drafted.model_copy(
        update={
            "num_speculative_tokens": tokens, "schedule": ((1, considered[-1].concurrency, tokens),), "way": "suffix",
            "expected": _expected(measurements), "considered": (*drafted.considered, *considered),
        }
    )  # fmt: skip
    refused = suffix_refused(taken.gain, least, drafted, settings)
    if refused is None:
        return taken.model_copy(update={"reason": suffix_taken(taken, least, drafted)})
    best = max(item.speedup for item in considered)
    said = f"Suffix decoding would give {taken.gain:.2f}x over all batch sizes, {best:.2f}x at best, but {refused}."
    return drafted.model_copy(update={"considered": taken.considered, "reason": f"{drafted.reason} {said}"})


def _at(measurements: Measurements, concurrency: int) -> Considered:
    """How it was served at one concurrency."""
    own = [item for item in measurements.served if item.concurrency == concurrency]
    if not own:
        raise InputError(
            f"measurements: suffix decoding was not served at concurrency {concurrency}; run 'understudy measure' again"
        )
    speedups = [item.speedup for item in own]
    return Considered(
        concurrency=concurrency, num_speculative_tokens=own[0].num_speculative_tokens, way="suffix",
        speedup=geometric_mean(speedups), worst=min(speedups),
    )  # fmt: skip


def _expected(measurements: Measurements) -> Expected:
    """What was served, which is all that is known of it."""
    predictions = tuple(
        Prediction(kind=s.kind, temperature=s.temperature, concurrency=s.concurrency, speedup=s.speedup)
        for s in measurements.served
    )
    lowest = measurements.concurrencies[0]
    alone = [item for item in measurements.served if item.concurrency == lowest]
    length, rate = _accepted(alone)
    return Expected(
        speedup=_at(measurements, lowest).speedup,
        acceptance_rate=rate,
        mean_acceptance_length=length,
        predictions=predictions,
    )


def _accepted(served: list[Served]) -> tuple[float | None, float | None]:
    """(mean acceptance length, acceptance rate) of the steps that proposed something."""
    drafts, drafted, accepted = (
        sum(getattr(item, name) for item in served)
        for name in ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    )
    return (1 + accepted / drafts, accepted / drafted) if drafts and drafted else (None, None)
