"""What is held out in turn: one row over folds, whose interval is over folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leaderboard.boards import build
from leaderboard.folds import Folded, join
from leaderboard.groups import Group
from leaderboard.pages import common
from leaderboard.stats import estimate
from tests.leaderboard.rows import Row, in_order, row
from tests.leaderboard.test_pages import made_of, table

#: Points that the method gains on each fold, and what the student alone has there.
GAINS, ALONE = (2.0, 4.0, 3.0, 7.0), (60.0, 50.0, 70.0, 64.0)


def held_out(method: str, gains: tuple[float, ...] = GAINS, seeds: int = 3, **changes: Any) -> list[Row]:
    """Runs of a method on each fold; seeds differ by a point."""
    option = changes.pop("option", "")
    return [
        row(
            method,
            seed,
            ALONE[fold] + seed - 1 + gain,
            ALONE[fold] + seed - 1,
            fold=f"subject {fold}",
            digest=f"digest{fold}",
            spec_hash=f"{method}-{fold}{option}",
            command=f"python -m kdbench task=classification method={method} data.fold={fold}{option}",
            **changes,
        )
        for fold, gain in enumerate(gains)
        for seed in range(seeds)
    ]


def joined(rows: list[Row]) -> list[Folded]:
    def words(group: Group) -> str:
        return common.overrides(group.newest.command, common.SAID | {"data.fold"})

    return join(build(in_order(rows)).boards, words)


def test_a_row_is_the_mean_over_folds() -> None:
    at, kd = joined([*held_out("kd", (1.0, 1.0, 1.0, 1.0)), *held_out("at")])
    assert (at.method, kd.method) == ("at", "kd")
    assert [*at.groups] == [f"subject {n}" for n in range(4)]
    assert at.score == estimate([62.0, 54.0, 73.0, 71.0])  # four values, not twelve
    assert at.scratch == estimate(ALONE)
    assert at.vs_scratch.estimate == estimate(GAINS)
    assert at.vs_scratch.verdict == "better"
    assert at.vs_kd.estimate == estimate([1.0, 3.0, 2.0, 6.0])
    assert at.vs_kd.verdict == "open"
    assert kd.vs_kd.reason == "kd itself"
    assert (at.seeds, at.enough, at.setting.fold, at.setting.digest) == (3, True, "", "")


def test_colours_over_folds_survive_a_correction_too() -> None:
    """One method's p is below 0.05 alone, and not once there are twenty of them."""
    at, *_ = joined(held_out("at"))
    assert at.vs_scratch.p is not None
    assert 0.05 / 20 < at.vs_scratch.p < 0.05
    noise = [held_out(f"m{n:02}", (1.0, -2.0, 1.5, -0.7 - n / 100)) for n in range(19)]
    found = {one.method: one for one in joined([*held_out("at"), *(r for rows in noise for r in rows)])}
    assert (found["at"].vs_scratch.verdict, found["at"].vs_scratch.family) == ("open", 20)
    assert found["at"].vs_scratch.corrected == pytest.approx(20 * at.vs_scratch.p)


def test_what_differs_in_more_than_the_fold_is_not_joined() -> None:
    rows = [*held_out("at"), *held_out("at", option=" method.p=1.0"), *held_out("at", option=" x=1", preset="smoke")]
    assert [(f.words, f.setting.preset, len(f.groups)) for f in joined(rows)] == [
        ("", "quick", 4),
        ("method.p=1.0", "quick", 4),
        ("x=1", "smoke", 4),
    ]


def test_one_fold_is_no_row_and_of_two_records_of_a_fold_the_newest_counts() -> None:
    assert joined(held_out("at", GAINS[:1])) == []
    again = row(
        "at", 0, 90.0, fold="subject 1", digest="other", spec_hash="new", command="python -m kdbench data.fold=1"
    )
    (found,) = joined([*held_out("at", GAINS[:2]), replace(again, finished=9e9)])
    assert found.score == estimate([62.0, 90.0])
    assert (found.seeds, found.enough) == (1, False)


def test_the_page_of_a_task_has_the_row(tmp_path: Path) -> None:
    site = made_of(tmp_path, *held_out("none", (0.0,) * 4), *held_out("at"))
    page = (site / "tasks" / "classification.html").read_text()
    assert "Held out in turn" in page
    found = table(site, "folds-classification")
    assert found["at"]["folds"] == "4"
    assert (found["at"]["score"], found["at"]["fold_1"]) == ("65", "54")
    assert found["none"]["vs_scratch"] == ""


def test_a_task_without_folds_has_none(tmp_path: Path) -> None:
    site = made_of(tmp_path, *(row("at", seed, 70.0) for seed in range(3)))
    assert "Held out in turn" not in (site / "tasks" / "classification.html").read_text()


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_is_first(higher: bool) -> None:
    rows = [*held_out("at", higher_is_better=higher), *held_out("sp", (9.0,) * 4, higher_is_better=higher)]
    assert [one.method for one in joined(rows)] == (["sp", "at"] if higher else ["at", "sp"])
