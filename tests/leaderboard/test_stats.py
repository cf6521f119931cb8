"""Against scipy where it has the same, else against the definition written out with plain loops."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats

from leaderboard.stats import (
    Estimate,
    columns,
    critical_difference,
    estimate,
    holm,
    interquartile_mean,
    iqm,
    paired,
    places,
    rank,
    wilcoxon,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_estimate_is_the_t_interval(n: int) -> None:
    x = RNG.normal(70, 3, n)
    found = estimate(x)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    low, high = scipy.stats.t.interval(0.95, n - 1, loc=x.mean(), scale=scipy.stats.sem(x))
    assert (found.n, found.mean, found.sd) == (n, pytest.approx(x.mean()), pytest.approx(np.std(x, ddof=1)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_estimate_of_few_and_of_bad_values() -> None:
    assert estimate([]) is None
    assert estimate([math.nan, math.inf]) is None
    assert estimate([3.0]) == Estimate(1, 3.0)
    assert estimate([3.0, math.nan]) == Estimate(1, 3.0)
    assert estimate([2.0, 2.0]) == Estimate(2, 2.0, 0.0, 2.0, 2.0)
    assert not Estimate(1, 3.0).excludes(0.0)
    assert Estimate(2, 3.0, 1.0, 2.0, 4.0).excludes(0.0)
    assert not Estimate(2, 0.0, 1.0, -1.0, 1.0).excludes(0.0)


def test_columns_are_estimates_side_by_side() -> None:
    x = RNG.normal(size=(6, 4))
    x[2, 1] = x[0, 2] = math.nan
    x[:, 3] = math.nan
    assert columns(x)[3] is None
    for found, column in zip(columns(x)[:3], x.T[:3], strict=True):
        alone = estimate(column)
        assert found is not None
        assert alone is not None
        for name in ("n", "mean", "sd", "low", "high"):
            assert getattr(found, name) == pytest.approx(getattr(alone, name), rel=1e-12)
    assert columns(np.empty((0, 2))) == [None, None]


def test_paired_is_the_interval_of_the_paired_t_test() -> None:
    a = RNG.normal(1, 1, 8)
    b = a - RNG.normal(0.5, 0.2, 8)
    found = paired(a, b)
    reference = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(reference.low), pytest.approx(reference.high))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 40])
def test_iqm_is_the_trimmed_mean(n: int) -> None:
    x = RNG.normal(size=n)
    assert iqm(x) == pytest.approx(scipy.stats.trim_mean(x, 0.25))


def reference_bootstrap(strata: list[list[float]], resamples: int) -> tuple[float, float]:
    """Percentiles of the trimmed mean, drawing within each stratum, in plain Python with its own generator."""
    draw = random.Random(5)
    means = []
    for _ in range(resamples):
        values = sorted(draw.choice(stratum) for stratum in strata for _ in stratum)
        cut = len(values) // 4
        kept = values[cut : len(values) - cut]
        means.append(sum(kept) / len(kept))
    means.sort()
    return means[int(0.025 * resamples)], means[int(0.975 * resamples)]


def test_interquartile_mean_is_a_stratified_bootstrap() -> None:
    strata = [RNG.normal(0.2, 0.1, 5).tolist(), RNG.normal(0.7, 0.2, 4).tolist(), RNG.normal(0.5, 0.05, 7).tolist()]
    found = interquartile_mean(strata, resamples=8000)
    assert found is not None
    assert found.n == 16
    assert found.mean == pytest.approx(scipy.stats.trim_mean(sum(strata, []), 0.25))
    assert (found.low, found.high) == pytest.approx(reference_bootstrap(strata, 8000), abs=0.01)
    assert found == interquartile_mean(strata, resamples=8000)
    assert found != interquartile_mean(strata, resamples=8000, seed=1)


def test_interquartile_mean_draws_within_a_stratum() -> None:
    # Equal values in each stratum leave nothing to chance; drawn across, the mean would vary.
    found = interquartile_mean([[0.0, 0.0], [1.0, 1.0]])
    assert found is not None
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)
    assert interquartile_mean([[], [math.nan]]) is None
    assert interquartile_mean([[0.25], [0.75]]) == Estimate(2, 0.5)


@pytest.mark.parametrize("n", [3, 6, 12, 25])
def test_wilcoxon_is_exact_for_few_pairs(n: int) -> None:
    a, b = RNG.normal(0.4, 1, n), RNG.normal(size=n)
    assert wilcoxon(a, b) == pytest.approx(scipy.stats.wilcoxon(a, b, method="exact").pvalue)


def test_wilcoxon_of_three_pairs_by_enumeration() -> None:
    a, b = [5.0, 4.0, 9.0], [4.0, 2.0, 12.0]
    signed = [1, 2, -3]  # differences by size
    seen = sum(r for r in signed if r > 0)
    sums = [sum(r for r, s in zip((1, 2, 3), signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=3)]
    tail = min(sum(s <= seen for s in sums), sum(s >= seen for s in sums)) / 8
    assert wilcoxon(a, b) == pytest.approx(min(1.0, 2 * tail))


def test_wilcoxon_of_many_pairs_of_ties_and_of_zeros() -> None:
    a, b = RNG.normal(0.2, 1, 60), RNG.normal(size=60)
    expected = scipy.stats.wilcoxon(a, b, method="asymptotic", correction=False).pvalue
    assert wilcoxon(a, b) == pytest.approx(expected)
    a, b = np.array([1.0, 2, 3, 3, 5, 6, 7, 7]), np.array([1.0, 1, 2, 4, 3, 2, 5, 5])
    expected = scipy.stats.wilcoxon(a, b, method="asymptotic", correction=False, zero_method="wilcox").pvalue
    assert wilcoxon(a, b) == pytest.approx(expected)
    assert wilcoxon([1.0, 2.0], [1.0, 2.0]) is None
    assert wilcoxon([], []) is None


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, None, 0.005]) == [
        pytest.approx(0.03),
        pytest.approx(0.06),
        pytest.approx(0.06),
        None,
        pytest.approx(0.02),
    ]
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None]) == [None]


def test_rank_shares_places_as_scipy_does() -> None:
    x = RNG.integers(0, 5, 40).astype(float)
    assert rank(x) == pytest.approx(scipy.stats.rankdata(x))


def test_places_tie_what_overlaps() -> None:
    def interval(low: float, high: float) -> Estimate:
        return Estimate(3, (low + high) / 2, 1.0, low, high)

    found = [interval(70, 72), interval(71, 73), interval(60, 61), interval(72.5, 74)]
    assert places(found) == [(2, 3), (1, 3), (4, 4), (1, 2)]
    assert places(found, higher_is_better=False) == [(2, 3), (2, 4), (1, 1), (3, 4)]
    assert places([]) == []
    assert places([interval(1, 2), Estimate(1, 9.0)]) == [(1, 2), (1, 2)]


def test_places_against_the_definition() -> None:
    found = [e for _ in range(12) if (e := estimate(RNG.normal(RNG.normal(0, 2), 1, 4))) is not None]
    for (best, worst), own in zip(places(found), found, strict=True):
        assert own.low is not None
        assert own.high is not None
        assert best == 1 + sum(o.low > own.high for o in found if o.low is not None)
        assert worst == len(found) - sum(o.high < own.low for o in found if o.high is not None)


def test_critical_difference() -> None:
    # Demšar (2006), table 6: the average ranks of four variants of C4.5 over 14 data sets, CD = 1.25 at 0.05.
    ranks = np.array([3.143, 2.000, 2.893, 1.964])
    scores = RNG.normal(size=(14, 4)) - ranks
    found, reason = critical_difference(scores)
    assert found is not None
    assert reason is None
    assert found.difference == pytest.approx(1.25, abs=0.005)
    assert found.cells == 14
    by_hand = np.array([scipy.stats.rankdata(-row) for row in scores])
    assert found.ranks == pytest.approx(by_hand.mean(axis=0))
    chi2 = scipy.stats.friedmanchisquare(*scores.T).statistic
    f = 13 * chi2 / (14 * 3 - chi2)
    assert found.p == pytest.approx(scipy.stats.f.sf(f, 3, 39))


def test_critical_difference_with_ties_and_without_doubt() -> None:
    scores = RNG.integers(0, 3, (10, 3)).astype(float)
    found, _ = critical_difference(scores)
    chi2 = scipy.stats.friedmanchisquare(*scores.T).statistic
    assert found is not None
    assert found.p == pytest.approx(scipy.stats.f.sf(9 * chi2 / (20 - chi2), 2, 18))
    always, _ = critical_difference(np.tile([3.0, 2.0, 1.0], (8, 1)))
    assert always is not None
    assert (always.ranks, always.p) == ((1.0, 2.0, 3.0), 0.0)
    same, _ = critical_difference(np.ones((8, 3)))
    assert same is not None
    assert same.p == pytest.approx(1.0)


def test_a_critical_difference_needs_cells_and_methods() -> None:
    assert critical_difference(np.ones((7, 3))) == (None, "7 cells have all of the methods, at least 8 are needed")
    assert critical_difference(np.ones((9, 2))) == (None, "2 methods were run in every cell, at least 3 are needed")
    assert critical_difference([])[0] is None
