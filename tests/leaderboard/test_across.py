from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import scipy.stats

from leaderboard.across import across, common, representatives
from leaderboard.boards import Boards, build
from leaderboard.stats import mean_ratio
from tests.leaderboard.rows import Row, in_order, row, scored

JITTER = (-0.3, 0.1, 0.2)


def cells(effects: Mapping[str, list[float]]) -> list[Row]:
    """Three seeds of each method in one cell per effect: points above the student alone, which has 60."""
    return [
        row(method, seed, 60.0 + effect + JITTER[seed] * (1 + place), pair=f"pair{place}", task=f"task{place % 3}")
        for place, (method, found) in enumerate(effects.items())
        for place, effect in enumerate(found)
        for seed in range(3)
    ]


def joined(rows: list[Row]) -> Boards:
    return build(in_order(rows))


EFFECTS = {
    "kd": [5.0, 6.0, 4.0, 5.5, 3.0, 6.0, 5.0, 4.5],
    "at": [8.0, 9.0, 9.5, 8.5, 4.0, 9.0, 8.0, 7.0],
    "sp": [-2.0, -4.0, 0.0, 1.0, -1.5, -3.0, -2.0, -4.0],
}


def test_methods_over_all_cells() -> None:
    found = across(joined(cells(EFFECTS)))
    assert len(found.boards) == 8
    assert [m.name for m in found.methods] == ["at", "kd", "sp"]
    at, kd, sp = found.methods
    assert found.common == tuple(range(8))
    assert at.gap == mean_ratio([g.cell for g in at.groups.values()])
    assert (at.imputed, at.missing) == (at.gap, ())
    assert at.gap is not None
    assert at.gap.n == 24
    assert at.scratch == {"better": 8}
    assert sp.scratch["worse"] > 0
    assert sum(sp.scratch.values()) == 8
    assert kd.p is None
    assert kd.baseline == {}
    means = {m.name: [g.gap.mean for g in m.groups.values() if g.gap] for m in found.methods}
    raw = {n: scipy.stats.wilcoxon(means[n], means["kd"], method="exact").pvalue for n in ("at", "sp")}
    assert at.p == pytest.approx(min(1, 2 * raw["at"]))
    assert sp.p == pytest.approx(min(1, 2 * raw["sp"]))
    assert (at.cells, sp.cells) == (8, 8)


def test_few_cells_have_no_p() -> None:
    five = {name: effects[:5] for name, effects in EFFECTS.items()}
    assert [(m.p, m.cells) for m in across(joined(cells(five))).methods] == [(None, 5)] * 3


def test_the_critical_difference_needs_eight_cells() -> None:
    found = across(joined(cells(EFFECTS)))
    assert found.critical is not None
    assert found.critical_methods == ("at", "kd", "sp")
    assert found.critical.ranks == (1.0, 2.0, 3.0)
    fewer = across(joined(cells({name: effects[:7] for name, effects in EFFECTS.items()})))
    assert (fewer.critical, fewer.critical_reason) == (None, "7 cells have all of the methods, at least 8 are needed")
    gap = across(joined(cells(EFFECTS | {"sp": EFFECTS["sp"][:3]})))
    assert gap.critical_reason == "2 methods were run in every cell, at least 3 are needed"


def test_grey_and_untuned_rows_are_left_out() -> None:
    rows = cells({"kd": [5.0], "at": [8.0]})
    untuned = [replace(r, trials=0, spec_hash="at0") for r in rows if r.method == "at"]
    few = [row("sp", 0, 70.0, pair="pair0", task="task0")]
    (board,) = joined([*rows, *untuned, *few]).boards
    chosen = representatives(board)
    assert {name: g.trials for name, g in chosen.items()} == {"at": 4, "kd": 4}


def test_of_several_specifications_the_one_with_most_seeds_stands_for_a_method() -> None:
    rows = cells({"kd": [5.0]})
    more = [row("kd", s, 70.0, pair="pair0", task="task0", spec_hash="more") for s in range(4)]
    (board,) = joined([*rows, *more]).boards
    assert representatives(board)["kd"].spec_hash == "more"


def test_without_the_baseline_and_without_anything() -> None:
    found = across(joined(cells({"at": [8.0, 7.0]})))
    assert found.methods[0].p is None
    empty = across(Boards())
    assert (empty.boards, empty.methods, empty.critical) == ((), (), None)
    assert empty.critical_reason is not None


def test_methods_are_compared_over_cells_that_they_share() -> None:
    """A method of the easy cell alone is not ahead of those that were run on the hard one too."""
    found = across(joined(cells(EFFECTS | {"sp": [12.0]})))
    assert found.common == tuple(range(8))
    at, kd, sp = found.methods
    assert (at.name, kd.name, sp.name) == ("at", "kd", "sp")
    assert (sp.gap, sp.missing) == (None, tuple(range(1, 8)))
    assert sp.imputed is not None
    assert sp.imputed.mean == pytest.approx(12 / 20 / 8, abs=0.01)
    assert common({"a": {0, 1, 2}, "b": {0, 1}, "c": {1}}) == (0, 1)
    assert common({"a": {0, 1}, "b": {2}}) == (0, 1)
    assert common({"a": set()}) == ()


def test_a_cell_without_headroom_has_no_gap() -> None:
    rows = [scored(r, teacher={"accuracy": 60.0 + (r.seed - 1) / 9}) for r in cells({"kd": [5.0], "at": [8.0]})]
    found = across(joined(rows))
    assert [m.gap for m in found.methods] == [None, None]
    assert [m.p for m in found.methods] == [None, None]
