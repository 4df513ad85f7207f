"""Scores with bootstrap intervals, and retention: how much of the target's scores another model keeps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.errors import InputError
from stages.settings import Settings

Values = NDArray[np.float64]
LEVEL = 0.95
NO_SCORE = "retention: needs a task with a score, and there are perplexities only; add one to 'tasks'"
AT_ONCE = 1 << 21
"""Draws that are held in memory together."""


class TaskScore(Settings):
    """What one model reached in one task.

    Attributes:
        metric: the harness's name of it.
        chance: the score of guessing; 0 where nothing can be guessed.
        score, low, high: the mean over items (of a perplexity: bits per byte of all items) and its 95 % interval.
        items: the score of each item; of a perplexity, its bits.
        weights: bytes of each item of a perplexity; empty for scores, whose items count alike.
        items_sha256: hash of what was asked; two models can be compared item by item where it is equal.
        part_of: the group of the harness's that was asked for; None: the task itself was.
    """

    task: str
    metric: str
    chance: float = 0.0
    score: float
    low: float
    high: float
    items: tuple[float, ...]
    weights: tuple[float, ...] = ()
    items_sha256: str
    part_of: str | None = None

    @property
    def is_perplexity(self) -> bool:
        """Whether lower is better and there is no such thing as chance."""
        return bool(self.weights)


class Ratio(Settings):
    """A share of the target's, with its 95 % interval over items; None where the target has nothing to keep."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Retention(Settings):
    """How much of the target's scores a model keeps.

    Attributes:
        plain: mean score over the target's.
        above_chance: likewise, chance taken off both: guessing keeps nothing.
        bits_per_byte: the model's over the target's (1 is equal, more is worse); None without such a task.
        tasks: ``plain`` for each task by itself.
    """

    plain: Ratio
    above_chance: Ratio
    bits_per_byte: Ratio | None = None
    tasks: dict[str, Ratio] = Field(default_factory=dict)


def percentiles(values: Values) -> tuple[float, float]:
    """The interval that holds the middle 95 % of resampled values."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def resampled(columns: Sequence[Sequence[float]], times: int, seed: int) -> Values:
    """Sums [columns, times] over items drawn with replacement, the same ones for all columns."""
    values, rng = np.asarray(columns, dtype=np.float64), np.random.default_rng(seed)
    count = values.shape[1]
    step = max(1, AT_ONCE // count)
    draws = (rng.integers(0, count, (min(step, times - start), count)) for start in range(0, times, step))
    return np.concatenate([values[:, drawn].sum(2) for drawn in draws], axis=1)


def interval(items: Sequence[float], weights: Sequence[float], times: int, seed: int) -> tuple[float, float]:
    """Bootstrap interval of a mean, or of the sum of items over the sum of weights where there are weights."""
    sums, sizes = resampled([items, weights or [1.0] * len(items)], times, seed)
    return percentiles(sums / sizes)


def scored(
    task: str, metric: str, items: Sequence[float], items_sha256: str, times: int, seed: int,
    chance: float = 0.0, weights: Sequence[float] = (), part_of: str | None = None,
) -> TaskScore:  # fmt: skip
    """A task's score with its interval."""
    low, high = interval(items, weights, times, seed)
    score = math.fsum(items) / (math.fsum(weights) if weights else len(items))
    return TaskScore(
        task=task, metric=metric, chance=chance, score=score, low=low, high=high,
        items=tuple(items), weights=tuple(weights), items_sha256=items_sha256, part_of=part_of,
    )  # fmt: skip


def shares(scores: Sequence[TaskScore]) -> list[float]:
    """What each task weighs in a mean: all that was asked for by name alike, and in a group each by its items."""
    sizes: Counter[str] = Counter()
    for score in scores:
        sizes[score.part_of or score.task] += len(score.items)
    return [len(score.items) / sizes[score.part_of or score.task] / len(sizes) for score in scores]


def mean_score(scores: Sequence[TaskScore], above_chance: bool = False) -> float:
    """Mean over tasks that are no perplexities, see ``shares``."""
    found = [score for score in scores if not score.is_perplexity]
    pairs = zip(found, shares(found), strict=True)
    return math.fsum(share * (score.score - score.chance * above_chance) for score, share in pairs)


def matched(own: Sequence[TaskScore], target: Sequence[TaskScore], source: str) -> list[tuple[TaskScore, TaskScore]]:
    """Both models' scores of the same tasks.

    Raises:
        InputError: the target lacks a task, or was asked other items.
    """
    known = {score.task: score for score in target}
    pairs = []
    for score in own:
        other = known.get(score.task)
        if other is None:
            raise InputError(f"{source}: has no task {score.task!r}; evaluate the target with the same tasks")
        if other.items_sha256 != score.items_sha256 or other.metric != score.metric:
            raise InputError(
                f"{source}: was asked other items of {score.task!r}; evaluate both with the same limit, seed and task data"
            )
        pairs.append((score, other))
    return pairs


def ratio(pairs: Sequence[tuple[TaskScore, TaskScore]], times: int, seed: int, above_chance: bool = False) -> Ratio:
    """Mean score of the first over the mean score of the second; the interval draws the same items for both."""
    means = [_means(own, times, seed + number) for number, own in enumerate(pairs)]
    chances = [own.chance if above_chance else 0.0 for own, _ in pairs]
    weighed = shares([own for own, _ in pairs])
    points = [
        math.fsum(w * (pair[side].score - c) for pair, c, w in zip(pairs, chances, weighed, strict=True))
        for side in (0, 1)
    ]
    if points[1] <= 0:
        return Ratio(value=None)
    drawn = [
        np.sum([w * (m[side] - c) for m, c, w in zip(means, chances, weighed, strict=True)], axis=0) for side in (0, 1)
    ]
    some = drawn[1] > 0
    low, high = percentiles(drawn[0][some] / drawn[1][some])
    return Ratio(value=float(points[0] / points[1]), low=low, high=high)


def _means(pair: tuple[TaskScore, TaskScore], times: int, seed: int) -> tuple[Values, Values]:
    """Resampled scores [times] of both, over the same draws of items."""
    columns = [column for score in pair for column in (score.items, score.weights or [1.0] * len(score.items))]
    own, sizes, target, target_sizes = resampled(columns, times, seed)
    return own / sizes, target / target_sizes


def retention(
    own: Sequence[TaskScore], target: Sequence[TaskScore], times: int, seed: int, source: str = "target"
) -> Retention:
    """How much of the target's scores a model keeps.

    Raises:
        InputError: see ``matched``, or no task has a score.
    """
    pairs = matched(own, target, source)
    kept = [pair for pair in pairs if not pair[0].is_perplexity]
    fluent = [pair for pair in pairs if pair[0].is_perplexity]
    if not kept:
        raise InputError(NO_SCORE)

    def of(chosen: Sequence[tuple[TaskScore, TaskScore]], above_chance: bool = False) -> Ratio:
        return ratio(chosen, times, seed, above_chance)

    return Retention(
        plain=of(kept), above_chance=of(kept, above_chance=True), bits_per_byte=of(fluent) if fluent else None,
        tasks={pair[0].task: of([pair]) for pair in kept},
    )  # fmt: skip
