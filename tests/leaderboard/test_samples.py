"""Intervals over test samples: against the analysis of variance, by simulation, and on a board."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from kdbench.base.outcomes import OUTCOMES, Outcomes, pack
from leaderboard.boards import build
from leaderboard.compare import contrasts
from leaderboard.crossed import Draws, together, variance
from leaderboard.groups import Group
from leaderboard.samples import DRAWS, FEWEST, GROUPS, _grouped, _sums, drawn, of
from leaderboard.stats import Estimate, estimate, grid, paired, ratio
from tests.leaderboard.rows import Row, in_order, row, scored
from tests.leaderboard.test_pages import made_of, table

RNG = np.random.default_rng(0)
COUNT = 200


def resampled(x: np.ndarray) -> Draws:
    """Draws of means of ``(seeds, samples)``."""
    return Draws(_sums(x.T)[:, :, None] / x.shape[1], x.shape[1])


def crossed(rng: np.random.Generator, seeds: int, samples: int, sizes: tuple[float, float, float]) -> np.ndarray:
    seed, sample, rest = sizes
    by_seed, by_sample = rng.normal(0, seed, (seeds, 1)), rng.normal(0, sample, (1, samples))
    return by_seed + by_sample + rng.normal(0, rest, (seeds, samples))


@pytest.mark.parametrize("sizes", [(0.1, 1.0, 1.0), (0.0, 2.0, 0.5), (1.0, 1.0, 1.0), (0.1, 0.0, 3.0)])
def test_the_variance_is_that_of_seeds_crossed_with_samples(sizes: tuple[float, float, float]) -> None:
    x = crossed(RNG, 5, 300, sizes)
    found = variance(x.mean(1)[:, None], drawn=resampled(x))
    expected = variance(x)  # the mean squares of both axes, from all 1,500 numbers
    assert found.value == pytest.approx(expected.value, rel=0.1)
    assert found.df <= 1.25 * expected.df  # where there is nothing but rest it is far from taking all of it


@pytest.mark.parametrize("sizes", [(0.05, 1.0, 1.0), (0.0, 1.0, 0.3), (0.5, 0.5, 0.5), (0.1, 0.0, 3.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(sizes: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    held = flat = 0
    for _ in range(500):
        x = crossed(rng, 4, 60, sizes)
        found, naive = grid(x.mean(1)[:, None], drawn=resampled(x)), estimate(x.mean(1))
        assert found is not None
        assert naive is not None
        held += not found.excludes(0.0)
        flat += not naive.excludes(0.0)
    assert held >= 455  # of 475 that are expected, three standard errors less
    if sizes[1] > sizes[0]:
        assert flat < held  # the same test set makes four seeds agree


def test_a_ratio_over_samples_reduces_to_the_ratio_over_seeds_where_they_do_not_vary() -> None:
    x, y = RNG.normal(2, 0.3, (5, 1)), RNG.normal(5, 0.3, (5, 1))
    still = tuple(Draws(np.broadcast_to(v, (DRAWS, 5, 1)), 50) for v in (x, y))
    plain, found = ratio(x, y), ratio(x, y, drawn=(still[0], still[1]))
    assert plain is not None
    assert found is not None
    assert (found.n, found.mean, found.samples) == (5, plain.mean, 50)
    assert (found.low, found.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    moving = tuple(d._replace(values=d.values + RNG.normal(0, 0.5, (DRAWS, 1, 1))) for d in still)
    wider = ratio(x, y, drawn=(moving[0], moving[1]))
    assert wider is not None
    assert wider.low is not None
    assert plain.low is not None
    assert wider.low < plain.low


def test_many_samples_are_drawn_in_groups() -> None:
    many = RNG.normal(size=(3 * GROUPS + 7, 2))
    groups = _grouped(many)
    assert groups.shape == (GROUPS, 2)
    np.testing.assert_allclose(groups.sum(0), many.sum(0))
    assert _grouped(many[:50]) is not many
    np.testing.assert_array_equal(_grouped(many[:50]), many[:50])


# ---- on a board ----------------------------------------------------------------------------------------------------


def hits(share: float, rng: np.random.Generator, like: np.ndarray | None = None, count: int = COUNT) -> np.ndarray:
    """Right or wrong by sample, some of them harder; with ``like`` also where another model is right."""
    hard = np.random.default_rng(9).random(count)
    right = 0.8 * hard + 0.2 * rng.random(count) < share
    if like is not None:
        right = like[:, 0].astype(bool) | (0.8 * hard[::-1] + 0.2 * rng.random(count) < share)
    return np.stack([right, np.ones(count)], 1).astype(float)


def kept(found: Row, folder: Path, ids: str = "ids", **models: np.ndarray) -> Row:
    """The run with outcomes beside its record, and the scores that they make."""
    content = pack(Outcomes("percent", ids, models))
    assert content is not None
    path = folder / found.method / str(found.seed) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(OUTCOMES).write_bytes(content)
    scores = {name: {"accuracy": 100 * v[:, 0].mean()} for name, v in models.items()}
    own = replace(found, path=str(path), outcomes=sha256(content).hexdigest(), score=scores["student"]["accuracy"])
    return scored(own, **scores)


def runs(folder: Path, *methods: str, seeds: int = 3, count: int = COUNT) -> list[Row]:
    teacher = hits(0.8, np.random.default_rng(5), count=count)
    found = []
    for seed in range(seeds):
        scratch = hits(0.6, np.random.default_rng([seed, 1]), count=count)
        for number, method in enumerate(methods):
            student = hits(0.05 + 0.1 * number, np.random.default_rng([seed, 2, number]), scratch, count)
            models: dict[str, Any] = {"student": student, "scratch": scratch, "teacher": teacher}
            found.append(kept(row(method, seed, 0.0, 0.0), folder, **models))
    return found


def of_method(rows: list[Row], method: str) -> Group:
    (board,) = build(in_order(rows)).boards
    return next(g for g in board.groups if g.method == method)


def test_intervals_of_a_row_are_over_samples_and_differences_are_paired_by_them(tmp_path: Path) -> None:
    rows = runs(tmp_path, "kd", "at")
    at = of_method(rows, "at")
    assert at.score is not None
    assert at.score.samples == COUNT
    assert at.metrics["accuracy"] is at.score
    for found in (at.scratch, at.teacher, at.gap, at.vs_scratch.estimate, at.vs_kd.estimate):
        assert found is not None
        assert found.samples == COUNT
    bare = of_method([replace(one, outcomes="") for one in rows], "at")
    assert bare.score is not None
    assert (bare.score.mean, bare.score.samples) == (at.score.mean, 0)
    assert error(at.score) > error(bare.score)
    assert at.vs_scratch.estimate is not None
    # Students that are right wherever their twins are: unpaired, a difference would be far less certain.
    unpaired = at.drawn(), at.drawn("scratch")
    assert unpaired[0] is not None
    assert unpaired[1] is not None
    shuffled = unpaired[1]._replace(values=RNG.permutation(unpaired[1].values))
    apart = paired(at.over(lambda r: r.score), at.over(lambda r: r.of("scratch")), drawn=(unpaired[0], shuffled))
    assert apart is not None
    assert error(at.vs_scratch.estimate) < 0.9 * error(apart)


def error(found: Estimate) -> float:
    """The standard error, whatever the degrees of freedom."""
    assert found.df is not None
    return width(found) / float(scipy.stats.t.ppf(0.975, found.df))


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


def test_a_comparison_of_all_methods_is_over_samples_too(tmp_path: Path) -> None:
    rows = runs(tmp_path, "kd", "at", "sp", seeds=4)
    (board,), (bare,) = (build(in_order(found)).boards for found in (rows, [replace(one, outcomes="") for one in rows]))
    (found,), (other,) = contrasts(board, "kd"), contrasts(bare, "kd")
    wide = {g.method: c.high - c.low for g, _, c in found.rows if c is not None}
    narrow = {g.method: c.high - c.low for g, _, c in other.rows if c is not None}
    assert wide.keys() == narrow.keys() == {"at", "sp"}
    assert all(wide[method] > narrow[method] for method in wide)


def test_a_board_on_which_some_lack_outcomes_colours_nothing_that_may_be_zero(tmp_path: Path) -> None:
    rows = [replace(one, outcomes="") if one.method == "kd" else one for one in runs(tmp_path, "kd", "at")]
    at, kd = of_method(rows, "at"), of_method(rows, "kd")
    assert kd.score is not None
    assert kd.score.samples == 0
    assert at.vs_kd.estimate is not None
    assert at.vs_kd.estimate.samples == 0
    assert at.vs_scratch.estimate is not None
    assert at.vs_scratch.estimate.samples == COUNT
    assert (at.vs_scratch.verdict == "better") <= at.vs_scratch.estimate.excludes(0.0)


def test_what_is_not_of_the_record_does_not_count(tmp_path: Path) -> None:
    (first, *others) = runs(tmp_path, "kd")
    assert of(first) is not None
    whole = drawn([first, *others], 1)
    assert whole is not None
    assert whole.values.shape == (DRAWS, 3, 1)
    assert drawn([first, replace(others[0], outcomes="")], 1) is None
    assert drawn([first], 1, "peer") is None
    raised = scored(first, student={"accuracy": first.score + 1.0 if first.score else 0.0})
    assert drawn([raised], 1) is None  # a score that its samples do not make
    assert drawn([raised], 1, "scratch") is not None
    assert of(replace(first, outcomes="0" * 64)) is None
    assert of(replace(first, path=str(tmp_path / "gone" / "run.json"))) is None
    other = kept(row("at", 0, 0.0), tmp_path, "others", student=hits(0.6, RNG))
    assert drawn([first, other], 1) is None  # other samples
    assert together((drawn([first], 1), drawn([other], 1))) is None
    few = kept(row("sp", 0, 0.0), tmp_path, student=hits(0.6, RNG, count=FEWEST - 1))
    assert of(few) is None


def test_pages_say_what_intervals_are_over(tmp_path: Path) -> None:
    rows = runs(tmp_path / "records", "kd", "at")
    rows += [replace(one, method="sp", spec_hash="sp", outcomes="") for one in rows if one.method == "kd"]
    site = made_of(tmp_path / "out", *rows)
    lines = table(site, "task-classification")
    assert {name: line["over"] for name, line in lines.items()} == {
        "kd": "seeds × 200 test samples",
        "at": "seeds × 200 test samples",
        "sp": "seeds",
    }
    assert "95 % interval over seeds × 200 test samples" in (site / "groups/kd-kd-a_b-4.html").read_text()
