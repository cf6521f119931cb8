"""Variances of what is crossed by seeds and teachers: the same seeds of the student under each of several teachers.

Both are drawn at random (Searle, Casella, McCulloch: Variance Components, 1992, chapter 4, two-way crossed). A value is
mean + seed + teacher + rest, and the mean over S seeds and T teachers varies by

    seeds / S + teachers / T + rest / (S T)  =  (MS_seeds + MS_teachers - MS_rest) / (S T),

with the mean squares MS of the analysis of variance. A component that comes out below zero counts as zero, which makes
intervals wider, never narrower. Degrees of freedom are Satterthwaite's (Biometrics Bulletin 1946): with three teachers
they may be as few as two, which is what three teachers tell.
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


def variance(values: ArrayLike, pooled: float = 1.0, each: float | None = None) -> Variance:
    """Returns the variance of the mean of a grid, of several grids the mean of their variances.

    Args:
        values: ``(seeds, teachers)``, or ``(grids, seeds, teachers)``; two seeds at least.
        pooled: How many times the degrees of freedom of one grid those of all are.
        each: By what the sums of squares of all grids are divided; ``pooled`` by default.
    """
    x = np.asarray(values, dtype=float)
    x = x if x.ndim == 3 else x[None]
    _, seeds, teachers = x.shape
    divisor = pooled if each is None else each
    sums = (float(np.trace(s)) for s in _sums(x))
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
    _, seeds, teachers = x.shape
    mean = x.mean(axis=(1, 2), keepdims=True)
    by_seed = x.mean(axis=2, keepdims=True) - mean
    by_teacher = x.mean(axis=1, keepdims=True) - mean
    rest = (x - mean - by_seed - by_teacher).reshape(len(x), -1)
    s, t = by_seed[:, :, 0], by_teacher[:, 0]
    return teachers * s @ s.T, seeds * t @ t.T, rest @ rest.T


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
