"""What ``understudy choose`` decides by, weighs and decides: plain records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from drafts.measurements import CostSplit
from drafts.predicting import geometric_mean
from server.pair import Expected
from stages.settings import Settings

Taken = Literal["draft", "parallel", "suffix"]
"""What proposes tokens: the draft in one of two ways, or suffix decoding, which needs none."""


class ChooseSettings(Settings):
    """What decides the choice.

    Attributes:
        min_gain: no draft is used where the expected speed-up is below 1 + this, nor suffix decoding.
        floor: no number of draft tokens (nor none of a draft that is loaded) is taken with which a kind of prompt, at any measured
            temperature, is expected to be served at less than this share of plain decoding's speed. Nor is suffix decoding taken
            where it was.
        indifference: the fewest draft tokens are taken whose expected speed-up is within this share of the best one's.
            Fewer tokens cost less when requests share a step, and such a difference is below what measuring resolves. Suffix
            decoding takes the draft's place only if it is ahead by more than this.
        max_tokens: the largest num_speculative_tokens to consider; what was measured bounds it too.
    """

    min_gain: float = Field(default=0.03, ge=0)
    floor: float = Field(default=0.98, ge=0, le=1)
    indifference: float = Field(default=0.02, ge=0, lt=1)
    max_tokens: int = Field(default=8, ge=1)


class Considered(Settings):
    """A number of draft tokens at a concurrency.

    Attributes:
        num_speculative_tokens: 0 only where drafting nothing was timed: an engine with a draft then is slower than plain.
        speedup: expected, over all kinds and temperatures; of suffix decoding as served.
        worst: likewise, of the kind and temperature that gain least.
    """

    concurrency: int
    num_speculative_tokens: int
    speedup: float
    worst: float
    way: Taken = "draft"

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
        costs: where the time of a step goes, by concurrency, in the draft's better way.
        way: what proposes tokens.
    """

    num_speculative_tokens: int | None
    schedule: tuple[tuple[int, int, int], ...]
    expected: Expected | None
    considered: tuple[Considered, ...]
    costs: tuple[CostSplit, ...]
    reason: str
    way: Taken = "draft"

    @property
    def by_concurrency(self) -> dict[int, int]:
        """Draft tokens at each measured concurrency."""
        measured = sorted({item.concurrency for item in self.considered})
        return {n: next((k for first, last, k in self.schedule if first <= n <= last), 0) for n in measured}

    @property
    def gain(self) -> float:
        """Speed-up over all measured concurrencies: geometric mean, 1 without a draft."""
        if self.num_speculative_tokens is None:
            return 1.0
        speedup_of = {
            (c.concurrency, c.num_speculative_tokens): c.speedup for c in self.considered if c.way == self.way
        }
        return geometric_mean([speedup_of.get(item, 1.0) for item in self.by_concurrency.items()])
