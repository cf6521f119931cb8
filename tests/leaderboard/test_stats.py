"""Against scipy where it has the same, else against the definition written out with plain loops."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import scipy.stats

from leaderboard.stats import (
    Cell,
    Estimate,
    columns,
    critical_difference,
    dunnett,
    dunnett_cdf,
    estimate,
    holm,
    mean_ratio,
    paired,
    paired_p,
    rank,
    ratio,
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


def test_the_p_of_a_paired_difference_is_that_of_the_t_test() -> None:
    x, y = RNG.normal(70, 3, 6), RNG.normal(69, 3, 6)
    found = paired(x, y)
    assert found is not None
    assert paired_p(found) == pytest.approx(scipy.stats.ttest_rel(x, y).pvalue)
    assert paired_p(Estimate(1, 2.0)) is None
    for apart, p in ((2.0, 0.0), (0.0, 1.0)):
        same = paired([1.0, 2.0, 3.0], [1.0 - apart, 2.0 - apart, 3.0 - apart])
        assert same is not None
        assert paired_p(same) == p


def test_the_interval_of_a_ratio_holds_what_no_t_test_excludes() -> None:
    x, y = RNG.normal(2, 0.5, 6), RNG.normal(4, 0.5, 6)
    found = ratio(x, y)
    assert found is not None
    assert (found.n, found.mean) == (6, pytest.approx(x.mean() / y.mean()))
    assert found.low is not None
    assert found.high is not None
    for end in (found.low, found.high):  # Fieller: where the test that x - r y has mean zero has p of exactly 0.05
        assert scipy.stats.ttest_1samp(x - end * y, 0).pvalue == pytest.approx(0.05)
    assert found.low < found.mean < found.high


def test_a_ratio_over_what_may_be_nothing_has_no_interval() -> None:
    found = ratio([1.0, 2.0, 3.0], [0.5, -0.375, 0.25])
    assert found == Estimate(3, 16.0)
    assert ratio([1.0], [4.0]) == Estimate(1, 0.25)
    assert ratio([1.0, 2.0], [1.0, -1.0]) is None
    assert ratio([], []) is None
    assert ratio([1.0, math.nan], [2.0, 2.0]) == Estimate(1, 0.5)


def test_the_mean_of_ratios_draws_seeds_within_their_cell() -> None:
    cells = [(RNG.normal(2, 0.5, n), RNG.normal(4, 0.3, n)) for n in (5, 4, 7)]
    found = mean_ratio([Cell(*cell) for cell in cells], resamples=8000)
    assert found is not None
    assert (found.n, found.mean) == (16, pytest.approx(np.mean([x.mean() / y.mean() for x, y in cells])))
    draw = random.Random(5)
    means = []
    for _ in range(8000):
        total = 0.0
        for x, y in cells:
            drawn = [draw.randrange(len(x)) for _ in x]
            total += sum(x[i] for i in drawn) / sum(y[i] for i in drawn)
        means.append(total / 3)
    means.sort()
    assert (found.low, found.high) == pytest.approx((means[200], means[7800]), abs=0.01)
    assert mean_ratio([]) is None
    assert mean_ratio([Cell([1.0], [4.0]), Cell([3.0], [4.0])]) == Estimate(2, 0.5)
    assert mean_ratio([Cell([1.0, 1.0], [2.0, 2.0]), Cell([0.0], [1.0])]) == Estimate(3, 0.25, None, 0.25, 0.25)


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


@pytest.mark.parametrize(("contrasts", "df", "critical"), [(1, 10, 2.228), (4, 20, 2.65), (9, 60, 2.77), (3, 12, 2.68)])
def test_dunnetts_critical_values_are_those_of_his_table(contrasts: int, df: int, critical: float) -> None:
    """Two-sided, 5%: Dunnett, New tables for multiple comparisons with a control, Biometrics 1964, table II."""
    assert dunnett_cdf(critical - 0.01, contrasts, df) < 0.951
    assert dunnett_cdf(critical + 0.01, contrasts, df) > 0.949


def test_dunnetts_law_is_a_multivariate_t() -> None:
    shape = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    law = scipy.stats.multivariate_t(shape=shape, df=7, seed=0)
    for t in (0.5, 2.0, 3.5):
        box = law.cdf(np.full(3, t), lower_limit=np.full(3, -t), maxpts=200_000)
        assert dunnett_cdf(t, 3, 7) == pytest.approx(float(box), abs=1e-3)


def test_dunnett_takes_seeds_for_blocks_and_one_variance_for_all() -> None:
    g = np.random.default_rng(4)
    seeds, methods = g.normal(0, 5, 5), np.array([0.0, 0.1, 4.0, -3.0])
    scores = methods[:, None] + seeds + g.normal(0, 0.5, (4, 5))
    found = dunnett(scores, control=0)
    assert found[0] is None
    # The model by least squares, with a column for each method but the control and for each seed.
    design = np.zeros((20, 8))
    for i, j in itertools.product(range(4), range(5)):
        design[5 * i + j, 3 + j] = 1
        if i:
            design[5 * i + j, i - 1] = 1
    beta, rest, *_ = np.linalg.lstsq(design, scores.ravel(), rcond=None)
    error = math.sqrt(rest[0] / 12 * 2 / 5)
    for contrast, mean in zip(found[1:], beta[:3], strict=True):
        assert contrast is not None
        assert contrast.mean == pytest.approx(mean)
        assert contrast.p == pytest.approx(1 - dunnett_cdf(abs(mean) / error, 3, 12), abs=1e-9)
        assert contrast.high - contrast.mean == pytest.approx(2.68 * error, rel=5e-3)
        assert contrast.resolved == (contrast.p < 0.05)
    assert [c.resolved for c in found if c] == [False, True, True]


def test_dunnett_of_scores_without_noise_resolves_what_differs() -> None:
    same, other = dunnett([[1.0, 2.0], [1.0, 2.0], [2.0, 3.0]], 0)[1:]
    assert same is not None
    assert other is not None
    assert (same.p, same.resolved) == (1.0, False)
    assert (other.p, other.resolved) == (pytest.approx(0.0, abs=1e-9), True)


@pytest.mark.parametrize(("contrasts", "df"), [(1, 4.0), (44, 176.0), (400, 2.0), (2000, 8000.0)])
def test_the_law_of_dunnett_is_its_double_integral(contrasts: int, df: float) -> None:
    nodes, weights = np.polynomial.legendre.leggauss(400)
    spread = np.sqrt(scipy.stats.chi2.isf((1 - nodes) / 2, df) / df)[:, None]
    control = 9 * nodes
    density = 9 * weights * scipy.stats.norm.pdf(control)
    for t in (0.0, 0.31, 1.117, 2.03, 3.14, 5.55, 17.3, 1e6):
        reach = math.sqrt(2) * t * spread
        inside = scipy.stats.norm.cdf(control + reach) - scipy.stats.norm.cdf(control - reach)
        expected = float(weights / 2 @ (inside**contrasts @ density))
        assert dunnett_cdf(t, contrasts, df) == pytest.approx(expected, abs=2e-5)
