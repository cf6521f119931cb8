"""Statistics of the board: plain functions of arrays, no knowledge of records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

#: Confidence of every interval.
LEVEL = 0.95
RESAMPLES = 2000
#: Below these a critical difference says nothing: methods, and cells (tasks, pairs) that all of them have.
MIN_METHODS, MIN_CELLS = 3, 8

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its spread.

    Attributes:
        n: Values that it was computed from.
        mean: Their mean (for :func:`interquartile_mean` the mean of the middle half).
        sd: Sample standard deviation; None for one value.
        low: Lower end of the 95% interval; None for one value.
        high: Upper end.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of ``value``; False without an interval."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class CriticalDifference:
    """Average ranks that can be told apart (Demšar: Statistical Comparisons of Classifiers, JMLR 2006).

    Attributes:
        ranks: Average rank of each method over the cells, 1 is best.
        difference: Ranks that differ by less cannot be told apart (Nemenyi at 0.05).
        p: Of the Friedman test in the form of Iman and Davenport: that all methods are alike.
        cells: How many.
    """

    ranks: tuple[float, ...]
    difference: float
    p: float
    cells: int


def columns(values: ArrayLike, level: float = LEVEL) -> list[Estimate | None]:
    """Returns mean, standard deviation and t-interval of each column of ``(runs, columns)``.

    What is not finite does not count; a column without a finite value gives None.
    """
    x = np.asarray(values, dtype=float)
    finite = np.isfinite(x)
    n = finite.sum(axis=0)
    if not len(x):
        return [None] * x.shape[1]
    mean = np.where(finite, x, 0.0).sum(axis=0) / np.maximum(n, 1)
    spread = (np.where(finite, x - mean, 0.0) ** 2).sum(axis=0)
    sd = np.sqrt(spread / np.maximum(n - 1, 1))
    half = special.stdtrit(np.maximum(n - 1, 1), (1 + level) / 2) * sd / np.sqrt(np.maximum(n, 1))
    found: list[Estimate | None] = []
    for count, m, s, h in zip(n.tolist(), mean.tolist(), sd.tolist(), half.tolist(), strict=True):
        if count > 1:
            found.append(Estimate(count, m, s, m - h, m + h))
        else:
            found.append(Estimate(count, m) if count else None)
    return found


def estimate(values: ArrayLike, level: float = LEVEL) -> Estimate | None:
    """Returns mean, standard deviation and t-interval of the finite ``values``; None where there is none."""
    return columns(np.asarray(values, dtype=float).reshape(-1, 1), level)[0]


def paired(first: ArrayLike, second: ArrayLike, level: float = LEVEL) -> Estimate | None:
    """Returns the estimate of ``first - second``, values of the same seeds in the same order."""
    return estimate(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), level)


def iqm(values: ArrayLike) -> float:
    """Returns the interquartile mean: without the lowest and the highest quarter, ``floor(n / 4)`` values each."""
    x = np.sort(np.asarray(values, dtype=float), axis=None)
    cut = len(x) // 4
    return float(x[cut : len(x) - cut].mean())


def interquartile_mean(
    strata: Sequence[ArrayLike], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Returns the interquartile mean of all runs with a percentile interval by stratified bootstrap.

    As in Agarwal et al.: Deep Reinforcement Learning at the Edge of the Statistical Precipice (NeurIPS 2021): runs are
    drawn again within each stratum (a cell: one task and pair), never across, and the mean of the middle half is taken
    over all of them.

    Args:
        strata: Normalised scores of the runs of each cell; the cells may differ in their number of runs.
        level: Of the interval.
        resamples: How often to draw.
        seed: Of the draws.

    Returns:
        None where there is no run; an estimate without an interval where no cell has two runs.
    """
    groups = [x[np.isfinite(x)] for x in (np.asarray(s, dtype=float).ravel() for s in strata)]
    groups = [x for x in groups if len(x)]
    if not groups:
        return None
    together = np.concatenate(groups)
    if max(map(len, groups)) < 2:
        return Estimate(len(together), iqm(together))
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([x[rng.integers(0, len(x), (resamples, len(x)))] for x in groups], axis=1)
    drawn.sort(axis=1)
    cut = len(together) // 4
    means = drawn[:, cut : len(together) - cut].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(len(together), iqm(together), float(together.std(ddof=1)), float(low), float(high))


def wilcoxon(first: ArrayLike, second: ArrayLike) -> float | None:
    """Returns the two-sided p of the signed-rank test that paired values do not differ; None where none differs.

    Exact below 26 pairs without ties or zeros, else by the normal approximation; zero differences are left out.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    difference = difference[np.isfinite(difference)]
    kept = difference[difference != 0]
    if not len(kept):
        return None
    ranks = rank(np.abs(kept))
    plus = float(ranks[kept > 0].sum())
    n = len(kept)
    if n <= 25 and len(np.unique(ranks)) == n and len(kept) == len(difference):
        ways = np.zeros(n * (n + 1) // 2 + 1)  # subsets of 1..n by their sum
        ways[0] = 1
        for r in range(1, n + 1):
            ways[r:] = ways[r:] + ways[:-r]
        tail = min(plus, n * (n + 1) / 2 - plus)
        return float(min(1.0, 2 * ways[: int(tail) + 1].sum() / 2.0**n))
    ties = np.unique(ranks, return_counts=True)[1]
    variance = n * (n + 1) * (2 * n + 1) / 24 - (ties**3 - ties).sum() / 48
    return float(2 * special.ndtr(-abs(plus - n * (n + 1) / 4) / math.sqrt(variance)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Corrects p values for being several (Holm, 1979); None stays None and does not count."""
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for step, (value, i) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * value))
        corrected[i] = highest
    return corrected


def rank(values: ArrayLike) -> Floats:
    """Returns the ranks of values, 1 for the lowest; equal values share the mean of their places."""
    x = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=float)


def places(estimates: Sequence[Estimate], higher_is_better: bool = True) -> list[tuple[int, int]]:
    """Returns the best and the worst place of each estimate: those whose intervals overlap are tied.

    The best place is one more than the number that are surely better, that is with an interval wholly above; the worst
    leaves only those behind that are surely worse. An estimate without an interval is sure of nothing.
    """
    sign = 1.0 if higher_is_better else -1.0
    ends = [
        (-math.inf, math.inf) if e.low is None or e.high is None else sorted((sign * e.low, sign * e.high))
        for e in estimates
    ]
    low, high = np.array([e[0] for e in ends]), np.array([e[1] for e in ends])
    return [
        (1 + int((low > own_high).sum()), len(ends) - int((high < own_low).sum()))
        for own_low, own_high in zip(low, high, strict=True)
    ]


def critical_difference(
    scores: ArrayLike, *, min_methods: int = MIN_METHODS, min_cells: int = MIN_CELLS
) -> tuple[CriticalDifference | None, str | None]:
    """Compares methods over many cells by their ranks: Friedman's test, then Nemenyi's critical difference.

    Args:
        scores: ``(cells, methods)``, higher is better, nothing missing.
        min_methods: Fewest methods to compare.
        min_cells: Fewest cells.

    Returns:
        The comparison or None, and the reason where it is None.
    """
    x = np.asarray(scores, dtype=float)
    cells, methods = x.shape if x.ndim == 2 else (0, 0)
    if methods < min_methods:
        return None, f"{methods} methods were run in every cell, at least {min_methods} are needed"
    if cells < min_cells:
        return None, f"{cells} cells have all of the methods, at least {min_cells} are needed"
    ranks = np.stack([rank(-row) for row in x])
    mean = ranks.mean(axis=0)
    # Friedman's statistic with correction for ties, then Iman and Davenport's F, which is less conservative.
    ties = sum(float((c**3 - c).sum()) for c in (np.unique(row, return_counts=True)[1] for row in ranks))
    spread = 12 * cells / (methods * (methods + 1)) * float(((mean - (methods + 1) / 2) ** 2).sum())
    scale = 1 - ties / (cells * methods * (methods**2 - 1))
    chi2 = spread / scale if scale > 0 else 0.0
    rest = cells * (methods - 1) - chi2
    f = (cells - 1) * chi2 / rest if rest > 1e-12 else math.inf
    p = 0.0 if math.isinf(f) else float(special.fdtrc(methods - 1, (methods - 1) * (cells - 1), f))
    from scipy.stats import studentized_range  # a second to import, and seldom needed

    q = float(studentized_range.ppf(LEVEL, methods, math.inf)) / math.sqrt(2)
    difference = q * math.sqrt(methods * (methods + 1) / (6 * cells))
    return CriticalDifference(tuple(map(float, mean)), difference, p, cells), None
