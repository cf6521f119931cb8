"""Variances of what is crossed by seeds and teachers: the same seeds of the student under each of several teachers.

Both are drawn at random (Searle, Casella, McCulloch: Variance Components, 1992, chapter 4, two-way crossed). A value is
mean + seed + teacher + rest, and the mean over S seeds and T teachers varies by

    seeds / S + teachers / T + rest / (S T)  =  (MS_seeds + MS_teachers - MS_rest) / (S T),

with the mean squares MS of the analysis of variance. A component that comes out below zero counts as zero, which makes
intervals wider, never narrower. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 1946): with three teachers
they may be as few as two, which is what three teachers tell.

Test samples are a third axis where they were kept: all runs have the same ones. How much the mean over the grid varies
when samples are drawn anew is found by a bootstrap (:mod:`leaderboard.samples`), which serves any metric. What is left
of a single run and sample is in that and in the variance of the grid; the bootstrap tells it too, by how much larger
the variance of the grid becomes in a draw, and it counts once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class Square(NamedTuple):
    """A mean square and its degrees of freedom."""

    mean: float
    df: float


class Variance(NamedTuple):
    """Of a mean over the whole grid, with its degrees of freedom."""

    value: float
    df: float


class Draws(NamedTuple):
    """The scores of a grid under draws of the test samples.

    Attributes:
        values: ``(draws, seeds, teachers)``, or ``(draws, grids, seeds, teachers)``.
        samples: How many samples there are.
        key: Which samples they are, and of what metric: draws of one key are of the same samples.
    """

    values: Floats
    samples: int
    key: tuple[str, ...] = ()

    def minus(self, other: Draws) -> Draws:
        """Returns the differences, draw by draw."""
        return self._replace(values=self.values - other.values)


def together(drawn: Iterable[Draws | None]) -> tuple[Draws, ...] | None:
    """Returns draws that can be paired: all there, of the same samples; else None."""
    found: list[Draws] = []
    for one in drawn:
        if one is None or (found and one.key != found[0].key):
            return None
        found.append(one)
    return tuple(found)


def variance(values: ArrayLike, pooled: float = 1.0, each: float | None = None, drawn: Draws | None = None) -> Variance:
    """Returns the variance of the mean of a grid, of several grids the mean of their variances.

    Args:
        values: ``(seeds, teachers)``, or ``(grids, seeds, teachers)``; two seeds at least.
        pooled: How many times the degrees of freedom of one grid those of all are.
        each: By what the sums of squares of all grids are divided; ``pooled`` by default.
        drawn: The same values under draws of the test samples; without them the variance is for these samples alone.
    """
    x = np.asarray(values, dtype=float)
    x = x if x.ndim == 3 else x[None]
    divisor = pooled if each is None else each
    found = _variance(x, pooled, divisor)
    return found if drawn is None else _over_samples(found, drawn, x.shape, divisor)


def _over_samples(found: Variance, drawn: Draws, shape: tuple[int, ...], divisor: float) -> Variance:
    """Adds what test samples make of the variance of a mean."""
    values = drawn.values.reshape(-1, *shape)
    draws, df = len(values), drawn.samples - 1
    by_sample = float(values.mean(axis=(2, 3)).var(axis=0, ddof=1).sum()) / divisor * drawn.samples / df
    again = _variance(values.reshape(-1, *shape[1:]), 1.0, draws * divisor).value
    added = by_sample - min(max(again - found.value, 0.0), found.value, by_sample)
    if not added:
        return found
    value = found.value + added
    return Variance(value, max(1.0, value**2 / (found.value**2 / found.df + added**2 / df)))


def _variance(x: Floats, pooled: float, divisor: float) -> Variance:
    """Returns that of ``(grids, seeds, teachers)`` for the test samples as they are."""
    _, seeds, teachers = x.shape
    sums = (float(weight * np.vdot(part, part)) for weight, part in _parts(x))
    counts = (seeds - 1, teachers - 1, (seeds - 1) * (teachers - 1))
    by_seed, by_teacher, rest = (
        Square(s / (divisor * n), pooled * n) if n else Square(0.0, 0.0) for s, n in zip(sums, counts, strict=True)
    )
    found = _combined(by_seed, by_teacher, rest) if teachers > 1 else Variance(*by_seed)
    return Variance(found.value / (seeds * teachers), found.df)


def covariance(values: ArrayLike) -> Floats:
    """Returns the covariance of the means of several quantities over one grid.

    Args:
        values: ``(quantities, seeds, teachers)``; two seeds at least.
    """
    x = np.asarray(values, dtype=float)
    _, seeds, teachers = x.shape
    by_seed, by_teacher, rest = _sums(x)
    by_seed = by_seed / (seeds - 1)
    if teachers == 1:
        return by_seed / seeds
    rest = rest / ((seeds - 1) * (teachers - 1))
    parts = (_positive(by_seed - rest), _positive(by_teacher / (teachers - 1) - rest))
    return (rest + parts[0] + parts[1]) / (seeds * teachers)


def largest(cells: Iterable[tuple[int, int]], minimum: int = 1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Picks seeds and teachers of which every combination is there: the most combinations.

    Args:
        cells: Seed and teacher of each combination that is there.
        minimum: Seeds that are worth more than further teachers.

    Returns:
        The seeds and the teachers, sorted.
    """
    seeds: dict[int, set[int]] = {}
    for seed, teacher in cells:
        seeds.setdefault(teacher, set()).add(seed)
    best: tuple[tuple[bool, int], set[int], list[int]] = ((False, 0), set(), [])
    order = sorted(seeds, key=lambda teacher: (-len(seeds[teacher]), teacher))
    for n in range(1, len(order) + 1):
        shared = set.intersection(*(seeds[teacher] for teacher in order[:n]))
        worth = len(shared) >= minimum, n * len(shared)
        best = max(best, (worth, shared, order[:n]), key=lambda found: found[0])
    return tuple(sorted(best[1])), tuple(sorted(best[2]))


def _sums(x: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the sums of squares and products of seeds, teachers and rest, each ``(quantities, quantities)``."""
    by_seed, by_teacher, rest = (weight * part @ part.T for weight, part in _parts(x))
    return by_seed, by_teacher, rest


def _parts(x: Floats) -> tuple[tuple[int, Floats], ...]:
    """Returns the deviations of seeds, teachers and rest, ``(quantities, …)``, and how often each of them counts."""
    _, seeds, teachers = x.shape
    mean = x.mean(axis=(1, 2), keepdims=True)
    by_seed = x.mean(axis=2, keepdims=True) - mean
    by_teacher = x.mean(axis=1, keepdims=True) - mean
    rest = (x - mean - by_seed - by_teacher).reshape(len(x), -1)
    return (teachers, by_seed[:, :, 0]), (seeds, by_teacher[:, 0]), (1, rest)


def _combined(seeds: Square, teachers: Square, rest: Square) -> Variance:
    """Adds the components that are above zero, and counts the degrees of freedom of the sum."""
    kept = [square for square in (seeds, teachers) if square.mean > rest.mean]
    if not kept:
        return Variance(*rest)
    value = sum(square.mean for square in kept) - (len(kept) - 1) * rest.mean
    kept += [rest] * (len(kept) - 1)
    return Variance(value, max(1.0, value**2 / sum(square.mean**2 / square.df for square in kept)))


def _positive(matrix: Floats) -> Floats:
    """Returns the nearest matrix without a negative eigenvalue."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T, dtype=float)
