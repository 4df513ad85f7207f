"""What verifying a pair found, and how it is told in a few lines."""

from __future__ import annotations

from dataclasses import dataclass

from drafts.distribution import GoodnessOfFit
from drafts.exact import Difference
from server.sampling_check import SamplingCheck


@dataclass(frozen=True)
class GreedyResult:
    """Greedy outputs with and without draft.

    Attributes:
        num_prompts: compared.
        differences: (prompt, where and why the outputs part) for those that are not identical.
    """

    num_prompts: int
    differences: tuple[tuple[str, Difference], ...]

    @property
    def passed(self) -> bool:
        """Whether all differences are ties."""
        return all(difference.tie for _, difference in self.differences)

    def lines(self) -> list[str]:
        """The count, then each difference."""
        equal = self.num_prompts - len(self.differences)
        head = f"greedy: {equal} of {self.num_prompts} outputs equal with and without draft"
        return [head, *(_difference_line(name, difference) for name, difference in self.differences)]


@dataclass(frozen=True)
class SampledResult:
    """Samples at one temperature against the target's exact distribution.

    Attributes:
        noncentrality: allowance for the engine's rounding.
        false_alarm_rate: of this test.
        detectable: total variation that is detected with the power asked for.
    """

    temperature: float
    num_samples: int
    fit: GoodnessOfFit
    noncentrality: float
    false_alarm_rate: float
    power: float
    detectable: float

    @property
    def passed(self) -> bool:
        """Whether a lossless engine gives such samples often enough."""
        return self.fit.p_value >= self.false_alarm_rate

    def line(self) -> str:
        """The test in one line."""
        return (
            f"sampled at temperature {self.temperature:g}: {self.num_samples} samples "
            f"{'follow' if self.passed else 'DO NOT follow'} the target's distribution "
            f"(chi-square {self.fit.statistic:.1f} with {self.fit.df} degrees of freedom, "
            f"allowance {self.noncentrality:.1f}, p = {self.fit.p_value:.2g}, "
            f"false-alarm rate {self.false_alarm_rate:.1g}; a total variation of {self.detectable:.3f} "
            f"is detected with {self.power:.0%})"
        )


@dataclass(frozen=True)
class VerifyReport:
    """What was found of a pair."""

    greedy: GreedyResult
    sampled: tuple[SampledResult, ...]
    self_check: SamplingCheck

    @property
    def passed(self) -> bool:
        """Whether the pair is lossless as far as the tests see."""
        return self.greedy.passed and all(result.passed for result in self.sampled) and self.self_check.passed

    @property
    def failures(self) -> list[str]:
        """One line for each thing that is wrong."""
        differing = [_difference_line(name, found) for name, found in self.greedy.differences if not found.tie]
        sampled = [result.line() for result in self.sampled if not result.passed]
        return [*differing, *sampled, *([] if self.self_check.passed else [self.self_check.line()])]

    def lines(self) -> list[str]:
        """The report, a few lines."""
        own = f"the engine's own probabilities: {self.self_check.line()}"
        return [*self.greedy.lines(), *(result.line() for result in self.sampled), own]


def _difference_line(name: str, difference: Difference) -> str:
    if difference.gap is None:
        return f"greedy: prompt {name}: one output ends at token {difference.position}, the other goes on"
    verdict = "a tie" if difference.tie else "NOT a tie"
    return (
        f"greedy: prompt {name} differs at token {difference.position}: logit gap {difference.gap:.4f}, "
        f"{verdict} (rounding moves a logit by up to {difference.rounding:.4f})"
    )
