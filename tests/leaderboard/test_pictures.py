"""What a task's page shows of what stands behind its rows."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leaderboard.boards import build as join
from leaderboard.pages import common, curves
from leaderboard.pages.pictures import _more, _validated, pairs
from leaderboard.row import flatten
from leaderboard.stats import Blocks, estimate
from tests.leaderboard.rows import BASE, INTERN, Row, in_order, row
from tests.leaderboard.test_pages import made_of
from tests.records.test_record import make

SCORES = {"kd": (66.0, 67.0, 69.0), "at": (70.0, 72.5, 73.0), "sp": (66.5, 66.0, 69.0)}
TRIED = {"1": 95.0, "0.3": 96.0, "3": 96.0, "x": 99.0}


def tuned(found: Row, **scores: float | None) -> Row:
    values = {**TRIED, **scores}
    return replace(found, tuning=INTERN(values, values.values()), factor=0.3)


def rows(**changes: Any) -> list[Row]:
    own = [row(m, s, v, 60.0 + s, **changes) for m, values in SCORES.items() for s, v in enumerate(values)]
    return [*map(tuned, own), *(row("none", s, 60.0 + s, 60.0 + s) for s in range(3))]


def with_curves(tmp_path: Path, found: list[Row]) -> list[Row]:
    """The rows with files in which validation rises to the score."""
    moved = []
    for one in found:
        path = tmp_path / one.path
        path.parent.mkdir(parents=True)
        lines = [f"{e},{(one.score or 0) * (e + 1) / 4 if e % 2 else ''}" for e in range(4)]
        (path.parent / "metrics.csv").write_text("\n".join(["epoch,val/accuracy", *lines]))
        moved.append(replace(one, path=str(path)))
    return moved


def test_every_pair_is_compared_as_the_table_compares() -> None:
    (board,) = join(in_order(rows())).boards
    table = pairs("p", board)
    assert table is not None
    assert [line.cells[0].text for line in table.lines] == ["at", "kd", "sp"]
    assert [column.label for column in table.columns] == ["Method", "at", "kd", "sp"]
    blocks = Blocks.of(np.array([SCORES["at"], SCORES["kd"], SCORES["sp"], (60.0, 61.0, 62.0)]))
    expected = blocks.contrast(0, 1)
    cell = table.lines[0].cells[2]
    assert (cell.value, cell.low, cell.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert cell.note == f"p = {expected.p:.2g} corrected for 3 comparisons"
    assert (cell.css, table.lines[1].cells[1].css, table.lines[1].cells[3].css) == ("good", "bad", "")
    mirrored = table.lines[1].cells[1].value
    assert mirrored == pytest.approx(-expected.mean)
    for i in range(3):
        assert table.lines[i].cells[i + 1].value is None
    kd = next(g for g in board.groups if g.method == "at")
    assert kd.vs_kd.corrected == pytest.approx(expected.p)  # they cannot contradict each other


def test_pairs_of_other_twins_are_not_compared_and_one_method_has_no_pairs() -> None:
    foreign = [row("pkt", s, 70.0, 50.0 + s) for s in range(3)]
    (board,) = join(in_order([*rows(), *foreign])).boards
    table = pairs("p", board)
    assert table is not None
    (line,) = (line for line in table.lines if line.cells[0].text == "pkt")
    assert {cell.note for cell in line.cells[1:] if cell.note} == {"no seeds of the same scratch twins and teachers"}
    (alone,) = join(in_order([row("kd", s, 66.0, 60.0) for s in range(3)])).boards
    assert pairs("p", alone) is None


def test_a_page_draws_seeds_places_training_and_tuning(tmp_path: Path) -> None:
    site = made_of(tmp_path / "out", *with_curves(tmp_path / "runs", rows()))
    page = (site / "tasks/classification.html").read_text()
    for name in ("seeds", "places", "training", "tuning"):
        assert f'id="c0m-{name}-t"' in page
    assert "<h2>Every pair</h2>" in page
    lines = list(csv.DictReader(io.StringIO((site / "data/pairs-classification.csv").read_text())))
    assert [line["method"] for line in lines] == ["at", "kd", "sp"]
    assert float(lines[0]["minus_kd"]) == pytest.approx(71.8333333 - 67.3333333)


def test_the_band_of_a_curve_is_over_all_runs(tmp_path: Path) -> None:
    (board,) = join(in_order(with_curves(tmp_path, rows()))).boards
    kd = next(g for g in board.groups if g.method == "kd")
    points = _validated(kd, "val/accuracy")
    assert [x for x, *_ in points] == [1.0, 3.0]  # where there was a validation
    expected = estimate(SCORES["kd"])
    assert expected is not None
    assert points[-1][1:] == pytest.approx((expected.mean, expected.low, expected.high))
    assert _validated(kd, "val/nothing") == ()


def test_without_files_or_trials_there_is_neither_curve() -> None:
    bare = [replace(one, tuning=INTERN((), ())) for one in rows()]
    (board,) = join(in_order(bare)).boards
    assert len(_more("m", board)) == 2
    assert curves.of("nowhere/run.json") == []
    assert curves.of("nowhere/other.json") == []


def test_rows_of_another_tuning_are_not_among_the_places() -> None:
    (board,) = join(in_order([*rows(), *rows(trials=0, spec_hash="bare")])).boards
    charts = [str(chart) for chart, _ in _more("m", board)]
    assert charts[0].count('class="one"') == 9
    assert charts[1].count('class="place"') == 3


def test_doubtful_factors_are_on_the_row() -> None:
    (board,) = join(in_order(rows())).boards
    kd = next(g for g in board.groups if g.method == "kd")
    assert kd.newest.tried == {0.3: 96.0, 1.0: 95.0, 3.0: 96.0}
    assert common.note(kd) == "factor 0.3 tied with 3 and at the edge of what was tried"
    plain = replace(kd.newest, tuning=INTERN(("0.1", "0.3", "1"), (1.0, 2.0, 1.0)))
    assert common.tuned(plain) == []


def test_what_trials_of_one_factor_differ_by_is_measured_once_a_setting() -> None:
    def tried(found: Row, **changes: Any) -> Row:
        return replace(found, tuning=INTERN(("0.1", "0.3", "1"), (94.0, 96.0, 95.5)), factor=0.3, **changes)

    several = {"trial_seeds": 2, "trial_spread": 1.0}
    own = [
        tried(row(m, s, v, 60.0 + s), **(several if m != "sp" else {"trial_seeds": 1}))
        for m, values in SCORES.items()
        for s, v in enumerate(values)
    ]
    (board,) = join(in_order(own)).boards
    notes = {g.method: common.note(g) for g in board.groups}
    assert notes["kd"] == notes["at"] == "factor 0.3 ahead by 0.5, where trials of one factor differ by 1"
    assert notes["sp"] == (
        "tuned under 1 seed, others here under 2; factor 0.3 ahead by 0.5, where trials of one factor differ by 1.41"
    )
    (board,) = join(in_order([replace(one, trial_spread=0.1) for one in own])).boards
    assert {common.note(g) for g in board.groups} == {"", "tuned under 1 seed, others here under 2"}


def test_the_spread_of_trials_is_in_the_record(tmp_path: Path) -> None:
    tuning = {"trials": 2, "factor": 1.0, "seed": [1000, 1001], "scores": {"1": 51.0, "0.3": 49.0}}
    record = make(tuning=tuning | {"by_seed": {"1": [50.0, 52.0], "0.3": [48.0, 50.0]}})
    found = flatten(record.model_copy(update={"content_hash": "c" * 32}), "run.json", INTERN)
    assert (found.trial_seeds, found.trial_spread) == (2, pytest.approx(2**0.5))
    lost = make(
        tuning=tuning | {"scores": {"1": 51.0, "0.3": None}, "by_seed": {"1": [50.0, 52.0], "0.3": [48.0, None]}}
    )
    found = flatten(lost.model_copy(update={"content_hash": "c" * 32}), "run.json", INTERN)
    assert found.trial_spread == pytest.approx(2**0.5)
    assert (BASE.trial_seeds, BASE.trial_spread) == (1 if BASE.trials else 0, None)
