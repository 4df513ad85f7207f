"""Statistics of sampled sequences, on plain numbers: chi-square tails, and cells that cover all sequences of tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

Prefix = tuple[int, ...]
NextProbabilities = Callable[[Sequence[Prefix]], Iterable[Sequence[float]]]
"""Probabilities of every token of the vocabulary after each of the given prefixes."""

OTHER = -1
"""Stands at the end of a cell for every token that has no cell of its own there."""


def _lower_gamma(shape: float, x: float) -> float:
    """Regularised lower incomplete gamma function by its power series; for x < shape + 1."""
    term = total = 1.0 / shape
    denominator = shape
    while term > total * 1e-16:
        denominator += 1.0
        term *= x / denominator
        total += term
    return total * math.exp(shape * math.log(x) - x - math.lgamma(shape))


def _upper_gamma(shape: float, x: float) -> float:
    """Regularised upper incomplete gamma function by its continued fraction (Lentz); for x >= shape + 1."""
    tiny = 1e-300
    b = x + 1.0 - shape
    c, d = 1.0 / tiny, 1.0 / b
    value = d
    for i in range(1, 10_000):
        a = -i * (i - shape)
        b += 2.0
        d = 1.0 / (a * d + b or tiny)
        c = b + a / c or tiny
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value * math.exp(shape * math.log(x) - x - math.lgamma(shape))


def chi_square_tail(statistic: float, df: int, noncentrality: float = 0.0) -> float:
    """P(X >= statistic) for a chi-square variable of ``df`` degrees of freedom.

    A noncentral one is a mixture of central ones with ``df + 2 j`` degrees, j drawn from Poisson(noncentrality / 2).
    """
    if statistic <= 0:
        return 1.0
    if noncentrality <= 0:
        shape, x = df / 2, statistic / 2
        return 1.0 - _lower_gamma(shape, x) if x < shape + 1 else _upper_gamma(shape, x)
    mean = noncentrality / 2
    width = 10 * math.sqrt(mean) + 30
    total = 0.0
    for j in range(max(0, int(mean - width)), int(mean + width) + 1):
        weight = math.exp(j * math.log(mean) - mean - math.lgamma(j + 1))
        total += weight * chi_square_tail(statistic, df + 2 * j)
    return min(total, 1.0)


def _bisect(wanted: Callable[[float], bool], high: float) -> float:
    """Smallest value from 0 on, to 1e-6, for which ``wanted`` holds from there on."""
    while not wanted(high):
        high *= 2
    low = 0.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if wanted(middle) else (middle, high)
    return high


def critical_value(rate: float, df: int, noncentrality: float = 0.0) -> float:
    """The statistic that is exceeded with probability ``rate``."""
    return _bisect(lambda x: chi_square_tail(x, df, noncentrality) <= rate, df + noncentrality + 1.0)


def detectable_distance(num_samples: int, df: int, rate: float, power: float, noncentrality: float = 0.0) -> float:
    """Total variation from which on a difference is detected with probability ``power`` (1.0: not detectable).

    A distribution at total variation t has chi-square distance of at least 4 t² (Cauchy-Schwarz), so its statistic has
    noncentrality of at least 4 t² num_samples; the t that reaches the needed one is returned.
    """
    critical = critical_value(rate, df, noncentrality)
    needed = _bisect(lambda x: chi_square_tail(critical, df, x) >= power, critical)
    return min(1.0, math.sqrt(needed / (4 * num_samples)))


@dataclass(frozen=True)
class Cells:
    """A partition of all token sequences of one length, by their first tokens.

    Attributes:
        length: of the sequences.
        kept: for each prefix that is looked into, the tokens that go on from there by themselves.
        merged: for cells too small to stand alone, the cell they went into.
    """

    length: int
    kept: Mapping[Prefix, frozenset[int]]
    merged: Mapping[Prefix, Prefix]

    def cell_of(self, sequence: Sequence[int]) -> Prefix:
        """The cell that a sequence falls into."""
        prefix: Prefix = ()
        while len(prefix) < self.length and prefix in self.kept:
            token = sequence[len(prefix)]
            if token not in self.kept[prefix]:
                prefix = (*prefix, OTHER)
                break
            prefix = (*prefix, token)
        return self._resolve(prefix)

    def probabilities(self, next_probabilities: NextProbabilities) -> dict[Prefix, float]:
        """Probability of every cell; the values add up to 1."""
        masses = _masses(self.length, self.kept, next_probabilities)
        result: Counter[Prefix] = Counter()
        for cell, mass in masses.items():
            result[self._resolve(cell)] += mass  # type: ignore[assignment]
        return dict(result)

    def _resolve(self, cell: Prefix) -> Prefix:
        while cell in self.merged:
            cell = self.merged[cell]
        return cell


def _masses(
    length: int, kept: Mapping[Prefix, frozenset[int]], next_probabilities: NextProbabilities
) -> dict[Prefix, float]:
    """Probability of every unmerged cell, walked level by level."""
    level: dict[Prefix, float] = {(): 1.0}
    cells: dict[Prefix, float] = {}
    for _ in range(length):
        inside = [prefix for prefix in level if prefix in kept]
        cells.update({prefix: mass for prefix, mass in level.items() if prefix not in kept})
        following: dict[Prefix, float] = {}
        for prefix, row in zip(inside, next_probabilities(inside) if inside else (), strict=True):
            own = {token: row[token] for token in kept[prefix]}
            following.update({(*prefix, token): level[prefix] * p for token, p in own.items()})
            cells[(*prefix, OTHER)] = level[prefix] * max(0.0, 1.0 - sum(own.values()))
        level = following
    return {**cells, **level}


def build_cells(
    next_probabilities: NextProbabilities, length: int, num_samples: int, min_expected: float = 5.0
) -> Cells:
    """Cells in which ``num_samples`` sequences are expected to fall at least ``min_expected`` times each.

    A prefix goes on by itself where that many are expected; what is left of a prefix is one cell, or joins what is left
    of the prefix one token shorter where it is too small; the shortest joins the smallest cell.
    """
    least = min_expected / num_samples
    kept: dict[Prefix, frozenset[int]] = {}
    level: dict[Prefix, float] = {(): 1.0}
    for _ in range(length):
        following: dict[Prefix, float] = {}
        prefixes = list(level)
        for prefix, row in zip(prefixes, next_probabilities(prefixes) if prefixes else (), strict=True):
            own = {token: level[prefix] * p for token, p in enumerate(row) if level[prefix] * p >= least}
            if own:
                kept[prefix] = frozenset(own)
                following.update({(*prefix, token): mass for token, mass in own.items()})
        level = following
    return Cells(length, kept, _merges(_masses(length, kept, next_probabilities), least))


def _merges(masses: dict[Prefix, float], least: float) -> dict[Prefix, Prefix]:
    """Where the cells below ``least`` go, longest first."""
    masses, merged = dict(masses), {}
    for cell in sorted(masses, key=len, reverse=True):
        if cell[-1:] == (OTHER,) and len(cell) > 1 and masses[cell] < least:
            parent = (*cell[:-2], OTHER)
            masses[parent] += masses.pop(cell)
            merged[cell] = parent
    root = (OTHER,)
    if masses.get(root, least) < least and len(masses) > 1:
        mass = masses.pop(root)
        merged[root] = min(masses, key=lambda cell: masses[cell])
        masses[merged[root]] += mass
    return merged


@dataclass(frozen=True)
class GoodnessOfFit:
    """Pearson's chi-square of observed counts against probabilities."""

    statistic: float
    df: int
    p_value: float


def goodness_of_fit(
    cells: Iterable[Prefix], probabilities: Mapping[Prefix, float], noncentrality: float = 0.0
) -> GoodnessOfFit:
    """Tests observed cells against their probabilities.

    Args:
        cells: one for each sample.
        probabilities: of every cell; they add up to 1.
        noncentrality: allowance for probabilities that are known only to within rounding.
    """
    counts = Counter(cells)
    total, df = sum(counts.values()), len(probabilities) - 1
    statistic = sum((counts[cell] - total * p) ** 2 / (total * p) for cell, p in probabilities.items())
    return GoodnessOfFit(statistic, df, chi_square_tail(statistic, df, noncentrality) if df > 0 else 1.0)


def rounding_noncentrality(num_samples: int, exact: Mapping[Prefix, float], rounded: Mapping[Prefix, float]) -> float:
    """Noncentrality of samples from ``rounded`` tested against ``exact``: num_samples · sum (r - e)² / e."""
    return num_samples * sum((rounded[cell] - p) ** 2 / p for cell, p in exact.items())
