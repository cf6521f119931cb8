from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from kdbench.errors import KDBenchError
from leaderboard.__main__ import main
from leaderboard.boards import Board, build
from leaderboard.compare import contrasts, markdown
from leaderboard.stats import dunnett
from tests.leaderboard.rows import Row, in_order, row

SCORES = {
    "none": (60.0, 61.0, 62.0),
    "kd": (66.0, 67.0, 69.0),
    "at": (70.0, 72.0, 73.0),
    "<b>sp</b>": (61.0, 60.5, 62.5),
}


def rows() -> Iterable[Row]:
    for method, values in SCORES.items():
        for seed, score in enumerate(values):
            yield row(method, seed, score, SCORES["none"][seed])


def board(*more: Row) -> Board:
    (one,) = build(in_order([*rows(), *more]), minimum=2).boards
    return one


def test_every_method_is_compared_over_the_seeds_of_the_control() -> None:
    (found,) = contrasts(board(row("none", 3, 59.0, 59.0)), "kd")
    assert found.seeds == (0, 1, 2)
    assert [group.method for group, _, _ in found.rows] == ["at", "kd", "<b>sp</b>", "none"]
    expected = dunnett(np.array([SCORES[g.method] for g, _, _ in found.rows]), control=1)
    assert [contrast for _, _, contrast in found.rows] == expected
    assert not found.left_out


def test_what_lacks_a_seed_or_has_other_twins_is_left_out_with_the_reason() -> None:
    few = [row("few", seed, 65.0, 60.0 + seed) for seed in (0, 1)]
    foreign = [row("foreign", seed, 65.0, 50.0) for seed in range(3)]
    (found,) = contrasts(board(*few, *foreign), "kd")
    assert found.left_out == {"few": "2 of 3 seeds", "foreign": "other scratch twins"}
    text = markdown(board(*few, *foreign), found, "kd")
    assert "Not compared: few (2 of 3 seeds), foreign (other scratch twins)" in text
    assert "| at | 71.67 ± 3.79 | +4.33 |" in text
    assert "| kd | 67.33 ± 3.79 |  |  |  |" in text


def test_a_control_beside_several_sets_of_twins_makes_a_comparison_of_each_the_newest_first() -> None:
    twins = (50.0, 51.0, 52.0)
    later = [
        row(method, seed, twins[seed] + gain, twins[seed], spec_hash=f"later-{method}", finished=2000.0 + seed)
        for method, gain in (("kd", 4.0), ("rkd", 6.0))
        for seed in range(3)
    ]
    newer, older = contrasts(board(*later), "kd")
    assert [group.method for group, _, _ in newer.rows] == ["rkd", "kd"]
    assert [group.method for group, _, _ in older.rows] == ["at", "kd", "<b>sp</b>", "none"]
    assert [c for _, _, c in older.rows] == [c for _, _, c in contrasts(board(), "kd")[0].rows]
    assert not newer.left_out, "every method stands in one of them"
    assert not older.left_out


def test_what_is_tuned_otherwise_is_not_compared() -> None:
    untuned = [row("raw", seed, 65.0, SCORES["none"][seed], trials=0) for seed in range(3)]
    (found,) = contrasts(board(*untuned), "kd")
    assert found.left_out == {"raw": "0 tuning trials"}


def test_a_control_that_is_not_there_is_one_line() -> None:
    with pytest.raises(KDBenchError, match="--control kt: not among the methods of classification .*: did you mean"):
        contrasts(board(), "kt")
    alone = build(in_order([row("kd", 0, 66.0)]), minimum=1).boards[0]
    with pytest.raises(KDBenchError, match="1 methods and 1 seeds of kd have one scratch twin, expected two"):
        contrasts(alone, "kd")


def test_the_committed_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--task", "pointcloud", "--control", "none", "--markdown"]) == 0
    told = capsys.readouterr().out
    assert "| kd | 20.46 ± 1.76 | +3.83 |" in told
    assert "Not compared: fitnet (other scratch twins)" in told
    assert main(["compare", "--task", "nothing"]) == 1
    assert "--task nothing --data None: no records; data sets of the task: none" in capsys.readouterr().err
