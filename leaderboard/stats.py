"""Statistics of the board: plain functions of arrays, no knowledge of records."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from leaderboard.crossed import Draws, Variance, covariance, variance

#: Confidence of every interval.
LEVEL = 0.95
RESAMPLES = 2000
#: Below these a critical difference says nothing: methods, and cells (tasks, pairs) that all of them have.
MIN_METHODS, MIN_CELLS = 3, 8

#: A t beyond which there is nothing.
_FAR = 1e6

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its spread.

    Attributes:
        n: Values that it was computed from; of seeds crossed with teachers the seeds.
        mean: Their mean, or a ratio of means.
        sd: Sample standard deviation; None for one value and for a ratio.
        low: Lower end of the 95% interval; None for one value.
        high: Upper end.
        df: Degrees of freedom of a t-interval, else None.
        samples: Test samples that the interval is over too; 0 where it is for the test set as it is.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    df: float | None = field(default=None, compare=False)
    samples: int = 0

    def excludes(self, value: float) -> bool:
        """Whether the interval lies wholly on one side of ``value``; False without an interval."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Contrast:
    """A method against a control, corrected for all methods that are compared with it.

    Attributes:
        mean: Difference of the means, method minus control.
        low: Lower end of the simultaneous interval: all of them hold together at :data:`LEVEL`.
        high: Upper end.
        p: Two-sided, corrected.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def resolved(self) -> bool:
        """Whether method and control can be told apart."""
        return not self.low <= 0.0 <= self.high


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
            found.append(Estimate(count, m, s, m - h, m + h, count - 1))
        else:
            found.append(Estimate(count, m) if count else None)
    return found


def estimate(values: ArrayLike, level: float = LEVEL) -> Estimate | None:
    """Returns mean, standard deviation and t-interval of the finite ``values``; None where there is none."""
    return columns(np.asarray(values, dtype=float).reshape(-1, 1), level)[0]


def grid(values: ArrayLike, level: float = LEVEL, drawn: Draws | None = None) -> Estimate | None:
    """Returns mean, standard deviation of a single value and t-interval of seeds crossed with teachers and samples.

    The interval is for a fresh draw of all, see :mod:`leaderboard.crossed`; of one teacher it is over the seeds alone,
    conditional on that teacher. A single seed gives no interval.

    Args:
        values: ``(seeds, teachers)``; a seed of which one is not finite does not count.
        level: Of the interval.
        drawn: The same values under draws of the test samples; they do not count where a seed does not.
    """
    x = np.asarray(values, dtype=float)
    kept = np.isfinite(x).all(axis=1)
    drawn = drawn if kept.all() else None
    x = x[kept]
    if not len(x) or (x.shape[1] < 2 and drawn is None):
        return estimate(x, level)
    mean = float(x.mean())
    if len(x) < 2:
        return Estimate(1, mean)
    found = variance(x, drawn=drawn)
    half = float(special.stdtrit(found.df, (1 + level) / 2)) * math.sqrt(found.value)
    samples = drawn.samples if drawn is not None else 0
    return Estimate(len(x), mean, float(x.std(ddof=1)), mean - half, mean + half, found.df, samples)


def paired(
    first: ArrayLike, second: ArrayLike, level: float = LEVEL, drawn: tuple[Draws, ...] | None = None
) -> Estimate | None:
    """Returns the estimate of ``first - second``, values of the same seeds (and teachers) in the same order.

    ``drawn`` are both under the same draws of the test samples.
    """
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    difference = difference if difference.ndim == 2 else difference[:, None]
    return grid(difference, level, None if drawn is None else drawn[0].minus(drawn[1]))


def paired_p(found: Estimate) -> float | None:
    """Returns the two-sided p of the t-test behind an interval: that there is no difference."""
    if found.df is None or found.high is None:
        return None
    half = found.high - found.mean
    if not half:
        return 0.0 if found.mean else 1.0
    return float(2 * special.stdtr(found.df, -abs(found.mean) * special.stdtrit(found.df, (1 + LEVEL) / 2) / half))


def ratio(
    above: ArrayLike, below: ArrayLike, level: float = LEVEL, drawn: tuple[Draws, Draws] | None = None
) -> Estimate | None:
    """Returns the ratio of two means of paired values, its interval by Fieller (J. R. Stat. Soc. B 1954).

    Args:
        above: Values of the numerator: of seeds, or ``(seeds, teachers)``.
        below: Those of the denominator, of the same seeds in the same order.
        level: Of the interval.
        drawn: Both under the same draws of the test samples; they do not count where a seed does not.

    Returns:
        None where nothing is paired or the denominator is zero; an estimate without an interval for one seed and where
        the denominator cannot be told from zero, so that no ratio can be excluded.
    """
    x, y = _paired(above, below)
    n = len(x)
    drawn = drawn if n == len(np.asarray(above)) else None
    if not n or not y.mean():
        return None
    top, bottom = float(x.mean()), float(y.mean())
    if n < 2:
        return Estimate(n, top / bottom)
    # The degrees of freedom are those of what the ratio is tested by.
    df = n - 1 if drawn is None and x.shape[1] == 1 else _linear(x, y, -top / bottom, drawn).df
    t = special.stdtrit(df, (1 + level) / 2)
    xx, xy, yy = (v * t**2 for v in _covariances(x, y, drawn))
    a, b, c = bottom**2 - yy, top * bottom - xy, top**2 - xx
    if a <= 0:
        return Estimate(n, top / bottom)
    half = math.sqrt(max(0.0, b * b - a * c))
    samples = drawn[0].samples if drawn is not None else 0
    return Estimate(n, top / bottom, None, float((b - half) / a), float((b + half) / a), samples=samples)


def _linear(x: Floats, y: Floats, weight: float, drawn: tuple[Draws, Draws] | None) -> Variance:
    """Returns the variance of the mean of ``x + weight y``."""
    if drawn is None:
        return variance(x + weight * y)
    first, second = drawn
    return variance(x + weight * y, drawn=first._replace(values=first.values + weight * second.values))


def _covariances(x: Floats, y: Floats, drawn: tuple[Draws, Draws] | None) -> tuple[float, float, float]:
    """Returns what two means vary and covary by."""
    if drawn is None:
        xx, xy, yy = covariance(np.stack([x, y]))[[0, 0, 1], [0, 1, 1]].tolist()
        return xx, xy, yy
    plus, minus = (_linear(x, y, weight, drawn).value for weight in (1.0, -1.0))
    xx, yy = (variance(v, drawn=d).value for v, d in zip((x, y), drawn, strict=True))
    return xx, (plus - minus) / 4, yy


def _paired(above: ArrayLike, below: ArrayLike) -> tuple[Floats, Floats]:
    """Returns two grids ``(seeds, teachers)`` without the seeds of which something is not finite."""
    x, y = (v if v.ndim == 2 else v[:, None] for v in (np.asarray(w, dtype=float) for w in (above, below)))
    kept = (np.isfinite(x) & np.isfinite(y)).all(axis=1)
    return x[kept], y[kept]


def draws(shape: tuple[int, ...], resamples: int, rng: np.random.Generator) -> tuple[Places, Places]:
    """Draws seeds and, where there are several, teachers of a grid: places that index it, ``(resamples, …)``."""
    seeds, teachers = shape
    drawn = rng.integers(0, seeds, (resamples, seeds))
    others = rng.integers(0, teachers, (resamples, teachers)) if teachers > 1 else np.zeros((resamples, 1), dtype=int)
    return drawn[:, :, None], others[:, None, :]


class Cell(NamedTuple):
    """What a ratio of means is of: values above and below (see :func:`ratio`), and both under draws of the samples."""

    above: ArrayLike
    below: ArrayLike
    drawn: tuple[Draws, Draws] | None = None


def drawn_means(cell: Cell, pair: tuple[Floats, Floats], places: tuple[Places, Places]) -> tuple[Floats, Floats]:
    """Returns the means of both values of a cell over each draw, every one of other test samples where they are kept.

    Args:
        cell: The cell.
        pair: Its values without the seeds of which something is missing.
        places: Of seeds and teachers, see :func:`draws`.
    """
    if cell.drawn is None or len(pair[0]) < len(np.asarray(cell.above)):
        first, second = (values[places].mean(axis=(1, 2)) for values in pair)
        return first, second
    turns = np.arange(len(places[0]))[:, None, None]
    above, below = (one.values[(turns % len(one.values), *places)].mean(axis=(1, 2)) for one in cell.drawn)
    return above, below


def mean_ratio(
    cells: Sequence[Cell], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Returns the mean over cells of the ratio of means of each, with a percentile interval by stratified bootstrap.

    Args:
        cells: Of one test set each; seeds, teachers and, where they are kept, test samples are drawn within their cell.
        level: Of the interval.
        resamples: How often to draw.
        seed: Of the draws.

    Returns:
        None without cells; no interval where no cell has two pairs.
    """
    pairs = [_paired(cell.above, cell.below) for cell in cells]
    if not pairs:
        return None
    found = float(np.mean([x.mean() / y.mean() for x, y in pairs]))
    count = sum(len(x) for x, _ in pairs)
    if max(len(x) for x, _ in pairs) < 2:
        return Estimate(count, found)
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for cell, (x, y) in zip(cells, pairs, strict=True):
        above, below = drawn_means(cell, (x, y), draws(x.shape, resamples, rng))
        # A draw may have a denominator of zero; it says nothing.
        total += np.divide(above, below, out=np.full(resamples, np.nan), where=below != 0)
    low, high = np.nanquantile(total / len(pairs), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(count, found, None, float(low), float(high))


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


@dataclass(frozen=True)
class Blocks:
    """Methods under the same seeds and teachers: a score is method + seed under teacher + noise of one variance.

    That is estimated from all of them: with few seeds a correction of separate t-tests would resolve next to nothing.
    Every difference of two has the same error, and Dunnett's correction (JASA 1955) holds for all differences to any
    one of the methods together.

    Attributes:
        means: Of each method.
        error: Standard error of a difference.
        half: Half of the simultaneous interval of a difference.
        df: Degrees of freedom of the error.
        samples: Test samples that the error is of too; 0 where it is for the test set as it is.
    """

    means: Floats
    error: float
    half: float
    df: float
    samples: int = 0

    @classmethod
    def of(cls, scores: ArrayLike, drawn: Draws | None = None) -> Blocks:
        """Takes scores ``(methods, seeds)`` or ``(methods, seeds, teachers)``, nothing missing, two methods and seeds.

        Of several teachers the error is that of a fresh draw of seeds and teachers: how much the methods differ from
        seed to seed and from teacher to teacher, pooled over them; of ``drawn`` ``(draws, *scores)`` also from test
        sample to test sample.
        """
        x = _grids(scores)
        methods = len(x)
        if drawn is not None:
            drawn = drawn._replace(values=drawn.values - drawn.values.mean(axis=1, keepdims=True))
        found = variance(x - x.mean(axis=0), methods - 1.0, drawn=drawn)
        error = math.sqrt(2 * found.value)
        half = error * _dunnett_quantile(methods - 1, found.df)
        return cls(x.mean(axis=(1, 2)), error, half, found.df, drawn.samples if drawn else 0)

    @classmethod
    def of_gains(cls, gains: ArrayLike, drawn: Draws | None = None) -> Blocks:
        """Takes differences to one control in the shape of :meth:`of`; the control comes out as the last method.

        What a teacher is worth, its students have in common: it is in all of these differences and in none between
        two methods. So their error is their own, the mean over the methods, with the degrees of freedom of one.
        """
        x = _grids(gains)
        found = variance(x, 1.0, float(len(x)), drawn)
        error = math.sqrt(found.value)
        half = error * _dunnett_quantile(len(x), found.df)
        return cls(np.append(x.mean(axis=(1, 2)), 0.0), error, half, found.df, drawn.samples if drawn else 0)

    def contrast(self, method: int, control: int) -> Contrast:
        """Compares two methods, corrected for the differences of all to the control."""
        mean = float(self.means[method] - self.means[control])
        t = abs(mean) / self.error if self.error else math.inf * abs(mean or 1.0)
        p = max(0.0, 1 - dunnett_cdf(t, len(self.means) - 1, self.df))
        return Contrast(mean, mean - self.half, mean + self.half, p)


def _grids(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=float)
    return x if x.ndim == 3 else x[:, :, None]


def dunnett(scores: ArrayLike, control: int, drawn: Draws | None = None) -> list[Contrast | None]:
    """Compares every method with one control (Dunnett, JASA 1955), the seeds as blocks, see :class:`Blocks`.

    Args:
        scores: ``(methods, seeds)`` or ``(methods, seeds, teachers)``, nothing missing, two methods and seeds at least.
        control: Row that the others are compared with.
        drawn: The scores under draws of the test samples.

    Returns:
        A contrast for each method; None for the control.
    """
    found = Blocks.of(scores, drawn)
    return [None if i == control else found.contrast(i, control) for i in range(len(found.means))]


def dunnett_cdf(t: float, contrasts: int, df: float) -> float:
    """Returns the probability that the largest of several |t| that share a control stays below ``t``.

    Means of equal size are compared, so that any two contrasts correlate by one half; the error has ``df`` degrees of
    freedom. Given the control's mean and the error the contrasts are independent: a double integral, whose inner one
    (over the control) is of one variable and does not know the error.
    """
    spread, weights = _spread(df)
    return float(weights @ np.interp(math.sqrt(2) * min(t, _FAR) * spread, *_within(contrasts)))


@functools.lru_cache(256)
def _spread(df: float) -> tuple[Floats, Floats]:
    """Returns estimates of a standard deviation of one, and how probable they are."""
    nodes, weights = _nodes(192)
    return np.sqrt(special.chdtri(df, (1 - nodes) / 2) / df), weights / 2


@functools.lru_cache(256)
def _within(contrasts: int) -> tuple[Floats, Floats]:
    """Returns reaches, in standard deviations of a mean, and how probably all means are so near to the control's."""
    z, weights = _nodes(96)
    z, weights = 8 * z[48:], 16 * weights[48:]  # the integrand is even in the control's mean
    reach = np.linspace(0, 14, 2801, dtype=np.float64)[:, None]
    inside = special.ndtr(z + reach) - special.ndtr(z - reach)
    return reach[:, 0], inside**contrasts @ (weights * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi))


@functools.cache
def _nodes(count: int) -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(count)


@functools.cache
def _dunnett_quantile(contrasts: int, df: float) -> float:
    from scipy.optimize import brentq  # half a second to import, and seldom needed

    return float(brentq(lambda t: dunnett_cdf(t, contrasts, df) - LEVEL, 0.1, 1e4))


def rank(values: ArrayLike) -> Floats:
    """Returns the ranks of values, 1 for the lowest; equal values share the mean of their places."""
    x = np.asarray(values, dtype=float)
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], dtype=float)


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
