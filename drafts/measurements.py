"""What ``understudy measure`` found, as ``choose`` reads it: costs of steps, acceptance, and what was served as it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.settings import Settings

ALL = "all"
"""Kind of the conditions in which prompts of all kinds are asked together."""

Way = Literal["draft", "parallel"]
"""How draft tokens are proposed: one after another, or all in one pass of the draft (``drafts.parallel``)."""
Stepping = Literal["plain", "verify", "draft", "parallel"]
"""What a step does: plain decoding, checking draft tokens that cost nothing, or drafting and checking in one of two ways."""


class StepCost(Settings):
    """Seconds of one engine step.

    Attributes:
        concurrency: requests that share the step.
        num_speculative_tokens: 0 of ``plain``; of a way of drafting, a step in which a loaded draft proposes nothing.
        seconds: median over answers; of other methods than plain, plain's times the median ratio to plain's step of the
            same turn.
        low: lower quartile, ``high`` the upper, likewise.
    """

    method: Stepping
    concurrency: int = Field(ge=1)
    num_speculative_tokens: int = Field(ge=0)
    seconds: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class CostSplit(Settings):
    """Where a speculative step's time goes, in plain steps at the same concurrency.

    Attributes:
        verify: v, a step that checks ``num_speculative_tokens`` + 1 tokens and drafts for free; with quartiles.
        draft: c, each draft token; from the drafting step's quartiles less v.
        steps: a whole step with 1, 2, … ``num_speculative_tokens`` draft tokens.
    """

    concurrency: int
    num_speculative_tokens: int
    way: Way = "draft"
    verify: float
    verify_low: float
    verify_high: float
    draft: float
    draft_low: float
    draft_high: float
    steps: tuple[float, ...]


class Acceptance(Settings):
    """How many draft tokens the steps of one kind of traffic accepted.

    Attributes:
        histogram: steps that accepted exactly 0, 1, … K tokens, all with the same K = len - 1.
    """

    kind: str
    temperature: float
    histogram: tuple[int, ...]
    way: Way = "draft"


class FirstToken(Settings):
    """What an answer costs before its first token.

    Attributes:
        kind: of the prompts, whose lengths differ as their answers' do.
        seconds: median time to the first token of one request at a time, rated as ``StepCost.seconds`` is.
        later_tokens: mean number of tokens that follow it.
    """

    method: Literal["plain", "draft", "parallel"]
    kind: str
    seconds: float = Field(gt=0)
    later_tokens: float = Field(gt=0)


class Served(Settings):
    """Speed-up over plain of a method that was timed as a whole, because it proposes another number of tokens at every step.

    Attributes:
        kind: ``ALL`` where prompts of all kinds were asked together.
        num_speculative_tokens: the most that it proposes in a step.
        speedup: output tokens per second over plain's, both over all turns.
        low: the least of single turns, ``high`` the most.
        num_drafts: steps that proposed something; with their tokens, over all answers.
    """

    method: Literal["suffix"] = "suffix"
    kind: str
    temperature: float
    concurrency: int = Field(ge=1)
    num_speculative_tokens: int = Field(ge=1)
    speedup: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    num_drafts: int = Field(ge=0)
    num_draft_tokens: int = Field(ge=0)
    num_accepted_tokens: int = Field(ge=0)


class Measurements(Settings):
    """What ``understudy measure`` found in the real engine on this machine.

    Attributes:
        enforce_eager, engine_args: how the engines were started; the pair is served the same way.
        served: suffix decoding, by kind, temperature and concurrency; empty where it was not measured.
    """

    enforce_eager: bool | None = None
    engine_args: tuple[str, ...] = ()
    costs: tuple[StepCost, ...]
    acceptances: tuple[Acceptance, ...]
    first_tokens: tuple[FirstToken, ...] = ()
    """Empty where no request was asked by itself; predictions leave prompts out then."""
    splits: tuple[CostSplit, ...] = ()
    """v and c by concurrency and way, worked out from ``costs`` for whoever reads the file."""
    served: tuple[Served, ...] = ()

    @property
    def ways(self) -> tuple[Way, ...]:
        """The ways of drafting that were measured."""
        return tuple(dict.fromkeys(acceptance.way for acceptance in self.acceptances))

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """The numbers of requests at a time that were timed, ascending."""
        return tuple(sorted({cost.concurrency for cost in self.costs}))
