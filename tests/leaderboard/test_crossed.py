"""Seeds crossed with teachers: against the analysis of variance written out with loops, and by simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats

from leaderboard.crossed import covariance, largest, variance
from leaderboard.stats import Blocks, Cell, Estimate, dunnett_cdf, estimate, grid, mean_ratio, paired, paired_p, ratio

RNG = np.random.default_rng(0)


def anova(x: np.ndarray) -> tuple[float, float, float]:
    """The mean squares of seeds, teachers and rest, from their definition."""
    seeds, teachers = x.shape
    mean = x.mean()
    by_seed = sum(teachers * (x[i].mean() - mean) ** 2 for i in range(seeds)) / (seeds - 1)
    by_teacher = sum(seeds * (x[:, j].mean() - mean) ** 2 for j in range(teachers)) / (teachers - 1)
    cells = itertools.product(range(seeds), range(teachers))
    rest = sum((x[i, j] - x[i].mean() - x[:, j].mean() + mean) ** 2 for i, j in cells)
    return by_seed, by_teacher, rest / ((seeds - 1) * (teachers - 1))


def drawn(shape: tuple[int, int], *, seed: float, teacher: float, rest: float, rng: np.random.Generator) -> np.ndarray:
    s, t = rng.normal(0, seed, (shape[0], 1)), rng.normal(0, teacher, (1, shape[1]))
    return s + t + rng.normal(0, rest, shape)


@pytest.mark.parametrize(("seed", "teacher"), [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_variance_of_a_mean_is_that_of_its_components(seed: float, teacher: float) -> None:
    x = drawn((5, 3), seed=seed, teacher=teacher, rest=0.2, rng=RNG)
    by_seed, by_teacher, rest = anova(x)
    expected = (max(by_seed - rest, 0.0) + max(by_teacher - rest, 0.0) + rest) / 15
    found = variance(x)
    assert found.value == pytest.approx(expected)
    assert covariance(x[None]) == pytest.approx(np.array([[expected]]))
    if by_seed > rest and by_teacher > rest:
        parts = by_seed**2 / 4 + by_teacher**2 / 2 + rest**2 / 8
        assert found.df == pytest.approx((by_seed + by_teacher - rest) ** 2 / parts)


def test_one_teacher_gives_the_t_interval_over_seeds() -> None:
    x = RNG.normal(70, 2, 6)
    assert grid(x[:, None]) == estimate(x)
    assert ratio(x, x + 3)
    assert ratio(x[:, None], (x + 3)[:, None]) == ratio(x, x + 3)
    assert grid([[1.0, 2.0]]) == Estimate(1, 1.5)  # a single seed says nothing of others
    assert grid(np.empty((0, 2))) is None
    holed = np.array([[1.0, 2.0], [np.nan, 3.0], [4.0, 6.0], [5.0, 5.0]])
    assert grid(holed) == grid(holed[[0, 2, 3]])


@pytest.mark.parametrize(("seed", "teacher", "rest"), [(1.0, 1.0, 1.0), (0.3, 2.0, 0.5), (2.0, 0.0, 0.5), (0, 0, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(seed: float, teacher: float, rest: float) -> None:
    rng = np.random.default_rng(1)
    held = flat = 0
    for _ in range(1000):
        x = drawn((5, 3), seed=seed, teacher=teacher, rest=rest, rng=rng)
        found, naive = grid(x), estimate(x)
        assert found is not None
        assert naive is not None
        held += not found.excludes(0.0)
        flat += not naive.excludes(0.0)
    assert held >= 930
    if seed or teacher:
        assert flat < held  # fifteen runs are not fifteen independent ones


def test_a_paired_difference_over_both_axes_has_its_p() -> None:
    x = drawn((5, 3), seed=1.0, teacher=1.0, rest=0.3, rng=RNG) + 2
    found = paired(x, np.zeros((5, 3)))
    assert found is not None
    assert found.high is not None
    error, p = np.sqrt(variance(x).value), paired_p(found)
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(x.mean()) / error, variance(x).df))
    assert found.high - found.mean == pytest.approx(error * scipy.stats.t.ppf(0.975, variance(x).df))


def test_the_ends_of_a_ratio_are_where_its_test_decides() -> None:
    y = drawn((5, 3), seed=0.5, teacher=0.3, rest=0.2, rng=RNG) + 10
    x = 0.6 * y + drawn((5, 3), seed=0.3, teacher=0.3, rest=0.2, rng=RNG)
    found = ratio(x, y)
    assert found is not None
    assert (found.n, found.mean) == (5, pytest.approx(x.mean() / y.mean()))
    assert found.low is not None
    assert found.high is not None
    cov, df = covariance(np.stack([x, y])), variance(x - found.mean * y).df
    for end in (found.low, found.high):
        error = np.sqrt(cov[0, 0] - 2 * end * cov[0, 1] + end**2 * cov[1, 1])
        assert abs((x - end * y).mean()) / error == pytest.approx(scipy.stats.t.ppf(0.975, df))


def test_a_bootstrap_draws_teachers_too() -> None:
    above = np.array([[1.0, 5.0, 9.0]] * 4)  # teachers alone make a difference
    found = mean_ratio([Cell(above, np.full((4, 3), 10.0))])
    assert found is not None
    assert found.mean == pytest.approx(0.5)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.3
    assert found.high > 0.7


def test_methods_over_both_axes_pool_what_they_differ_in() -> None:
    seeds, teachers = RNG.normal(0, 3, (1, 5, 1)), RNG.normal(0, 3, (1, 1, 3))
    methods = np.array([0.0, 4.0, 0.1, -3.0])[:, None, None]
    own = RNG.normal(0, 0.3, (4, 1, 3))  # a method likes one teacher better than another
    x = methods + seeds + teachers + own + RNG.normal(0, 0.3, (4, 5, 3))
    found = Blocks.of(x)
    centred = x - x.mean(axis=0)
    by_seed, by_teacher, rest = (sum(part) / 3 for part in zip(*map(anova, centred), strict=True))
    value = max(by_seed - rest, 0.0) + max(by_teacher - rest, 0.0) + rest
    assert found.error == pytest.approx(np.sqrt(2 * value / 15))
    contrast = found.contrast(1, 0)
    assert contrast.mean == pytest.approx(x[1].mean() - x[0].mean())
    assert contrast.p == pytest.approx(1 - dunnett_cdf(contrast.mean / found.error, 3, found.df))
    assert [found.contrast(i, 0).resolved for i in (1, 2, 3)] == [True, False, True]
    # One teacher of them gives what one teacher always gave.
    assert Blocks.of(x[:, :, :1]).error == Blocks.of(x[:, :, 0]).error


def test_what_a_teacher_is_worth_is_in_every_difference_to_scratch() -> None:
    worth = np.array([-1.0, 0.0, 2.0])
    gains = 3 + worth + RNG.normal(0, 0.05, (4, 5, 3))  # alike in all methods
    alone, between = Blocks.of_gains(gains), Blocks.of(gains)
    assert between.error < 0.05  # the methods do not differ
    assert alone.error == pytest.approx(np.std(worth, ddof=1) / np.sqrt(3), rel=0.1)
    assert alone.df == pytest.approx(2, abs=0.3)
    contrast = alone.contrast(0, 4)
    assert contrast.mean == pytest.approx(gains[0].mean())


def test_the_largest_full_grid() -> None:
    def cells(**teachers: str) -> list[tuple[int, int]]:
        return [(int(seed), int(name[1:])) for name, seeds in teachers.items() for seed in seeds]

    assert largest(cells(t0="01234", t1="01234", t2="01234")) == ((0, 1, 2, 3, 4), (0, 1, 2))
    assert largest(cells(t0="01234", t1="01")) == ((0, 1, 2, 3, 4), (0,))
    assert largest(cells(t0="01234", t1="0123")) == ((0, 1, 2, 3), (0, 1))
    assert largest(cells(t0="012", t1="01")) == ((0, 1), (0, 1))
    assert largest(cells(t0="012", t1="01"), minimum=3) == ((0, 1, 2), (0,))
    assert largest([]) == ((), ())
