"""What ``understudy choose`` decides by, weighs and decides: plain records."""

from __future__ import annotations

from pydantic import Field

from drafts.measurements import Way
from drafts.predicting import CostSplit
from stages.settings import Settings


class ChooseSettings(Settings):
    """What decides the choice.

    Attributes:
        min_gain: no draft is used where the expected speed-up is below 1 + this.
        floor: no number of draft tokens is taken with which a kind of prompt, at any measured temperature, is expected to be
            served at less than this share of plain decoding's speed.
        indifference: the fewest draft tokens are taken whose expected speed-up is within this share of the best one's.
            Fewer tokens cost less when requests share a step, and such a difference is below what measuring resolves.
        max_tokens: the largest num_speculative_tokens to consider; what was measured bounds it too.
    """

    min_gain: float = Field(default=0.03, ge=0)
    floor: float = Field(default=0.98, ge=0, le=1)
    indifference: float = Field(default=0.02, ge=0, lt=1)
    max_tokens: int = Field(default=8, ge=1)


class Prediction(Settings):
    """Expected speed-up of one kind of traffic with the chosen setting."""

    kind: str
    temperature: float
    concurrency: int
    speedup: float


class Expected(Settings):
    """What the chosen setting should give, so that the gateway can say when reality drifts from it.

    Attributes:
        speedup: at the lowest measured concurrency, as are the two others.
        predictions: for every kind, temperature and measured concurrency.
    """

    speedup: float
    acceptance_rate: float
    mean_acceptance_length: float
    predictions: tuple[Prediction, ...] = ()


class Considered(Settings):
    """A number of draft tokens at a concurrency.

    Attributes:
        speedup: expected, over all kinds and temperatures.
        worst: expected of the kind and temperature that gain least.
    """

    concurrency: int
    num_speculative_tokens: int
    speedup: float
    worst: float
    way: Way = "draft"

    def pays(self, settings: ChooseSettings) -> bool:
        """Whether it gains enough over all, and takes too much from none."""
        return self.speedup >= 1 + settings.min_gain and self.worst >= settings.floor


class Choice(Settings):
    """The decision.

    Attributes:
        num_speculative_tokens: the most that is drafted at any batch size; None when no draft pays anywhere.
        schedule: (first batch size, last, draft tokens), ascending and without gaps; one entry when it is the same for
            all. The last entry holds for all larger batches too.
        considered: what was considered, by way, concurrency and number of tokens.
        costs: where the time of a step goes, by concurrency, in the chosen way.
        way: how draft tokens are proposed.
    """

    num_speculative_tokens: int | None
    schedule: tuple[tuple[int, int, int], ...]
    expected: Expected | None
    considered: tuple[Considered, ...]
    costs: tuple[CostSplit, ...]
    reason: str
    way: Way = "draft"

    @property
    def by_concurrency(self) -> dict[int, int]:
        """Draft tokens at each measured concurrency."""
        measured = sorted({item.concurrency for item in self.considered})
        return {n: next((k for first, last, k in self.schedule if first <= n <= last), 0) for n in measured}
