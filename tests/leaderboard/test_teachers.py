"""Several teachers: a second axis of a row; and teachers that were made in another way, which part settings."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdbench.base.digest import digest
from kdbench.records.record import content_hash, spec_hash, teacher_of
from kdbench.records.schema import Record
from leaderboard.agreement import of_recipes, of_specs
from leaderboard.boards import Board, build
from leaderboard.check import check
from leaderboard.compare import contrasts, markdown
from leaderboard.groups import Group
from leaderboard.pages import common
from leaderboard.pages.task import _facts
from leaderboard.releases import snapshot
from leaderboard.rows import read
from leaderboard.stats import grid
from tests.leaderboard.rows import Row, in_order, row
from tests.leaderboard.test_pages import made_of
from tests.records.test_record import make

RNG = np.random.default_rng(3)
NOISE = {m: RNG.normal(0, 0.1, (5, 3)) for m in ("kd", "at", "sp")}
WORTH = {"kd": 6.0, "at": 9.0, "sp": 6.0}
TEACHERS = (0.0, 2.0, 4.0)


def score(method: str, seed: int, teacher: int) -> float:
    return 60 + seed + WORTH[method] + TEACHERS[teacher] + float(NOISE[method][seed, teacher])


def rows(method: str, teachers: Iterable[int] = range(3), seeds: int = 5, **changes: Any) -> list[Row]:
    cells = [(seed, teacher) for seed in range(seeds) for teacher in teachers]
    return [row(method, s, score(method, s, t), 60.0 + s, teacher_seed=t, **changes) for s, t in cells]


def board(*found: Row) -> Board:
    (one,) = build(in_order(list(found))).boards
    return one


def the(found: Board, method: str) -> Group:
    (one,) = (g for g in found.groups if g.method == method)
    return one


def test_a_row_holds_seeds_under_every_teacher() -> None:
    kd = the(board(*rows("kd")), "kd")
    assert (kd.seeds, kd.teachers, kd.enough, len(kd.scored)) == ((0, 1, 2, 3, 4), (0, 1, 2), True, 15)
    values = np.array([[score("kd", s, t) for t in range(3)] for s in range(5)])
    assert kd.score == grid(values)
    assert kd.score is not None
    one = the(board(*rows("kd", [0])), "kd").score
    assert one is not None
    # Three teachers that are worth 0, 2 and 4: their spread is in the interval, which a single teacher cannot know.
    assert kd.score.high is not None
    assert one.high is not None
    assert kd.score.high - kd.score.mean > 3 * (one.high - one.mean) / np.sqrt(5)
    assert kd.gap is not None
    assert kd.gap.n == 5
    assert common.gap(kd).note == "of 5 seeds × 3 teachers"


def test_runs_outside_of_the_full_grid_do_not_count_and_are_told() -> None:
    kd = the(board(*rows("kd", [0, 1]), *rows("kd", [2], seeds=2)), "kd")
    assert (kd.seeds, kd.teachers, kd.outside) == ((0, 1, 2, 3, 4), (0, 1), 2)
    assert "2 not counted, outside of 5 seeds × 2 teachers" in common.note(kd)
    few = the(board(*rows("kd", [0], seeds=3), *rows("kd", [1], seeds=2)), "kd")
    assert (few.seeds, few.teachers, few.enough) == ((0, 1, 2), (0,), True)  # further teachers make no row grey


def test_differences_are_within_one_teacher() -> None:
    found = board(*rows("kd"), *rows("at"), *rows("sp", [1]))
    at, sp = the(found, "at"), the(found, "sp")
    assert at.vs_kd.estimate is not None
    assert at.vs_kd.estimate.mean == pytest.approx(3 + (NOISE["at"] - NOISE["kd"]).mean())
    assert at.vs_kd.estimate.high is not None
    assert at.vs_kd.estimate.high - at.vs_kd.estimate.mean < 0.5  # what teachers differ by is in both
    assert (at.vs_kd.verdict, at.vs_kd.family) == ("better", 2)
    assert sp.vs_kd.estimate is not None
    assert sp.vs_kd.estimate.mean == pytest.approx((NOISE["sp"] - NOISE["kd"])[:, 1].mean())
    assert (sp.vs_kd.verdict, sp.vs_kd.family, sp.vs_kd.estimate.n) == ("open", 3, 5)
    assert (at.rank, the(found, "kd").rank, sp.rank) == ((1, 1), (2, 3), (2, 3))
    apart = the(board(*rows("kd", [0]), *rows("at", [1])), "at")
    assert apart.vs_kd.reason == "no kd of the same teachers"


def test_the_headroom_of_several_teachers_is_over_both_axes() -> None:
    found = board(*rows("kd"), *rows("at", [0]))
    assert found.teacher_seeds == (0, 1, 2)
    assert found.headroom is not None
    assert (found.headroom.n, found.headroom.mean) == (5, pytest.approx(18.0))


def test_a_board_says_what_it_is_conditional_on() -> None:
    assert _facts(board(*rows("kd", [0]))).startswith("Teacher 80.00, on which everything here is conditional;")
    said = _facts(board(*rows("kd"), *rows("at"), *rows("sp", [0])))
    assert said.startswith(
        "3 teachers, mean 80.00: 2 rows are over all of them, every other one is conditional on fewer;"
    )


def test_pages_name_seeds_and_teachers(tmp_path: Path) -> None:
    site = made_of(tmp_path / "out", *rows("kd"), *rows("at", [0]))
    page = (site / "groups/kd-kd-a_b-4.html").read_text()
    assert "<dt>Seeds</dt><dd>5 seeds × 3 teachers with a score</dd>" in page
    assert "Teacher seed" in page
    assert "seed 4, teacher 2" in page
    assert "other teachers in <code>teacher.seed=</code>" in page
    alone = (site / "groups/at-at-a_b-4.html").read_text()
    assert "5 seeds with a score, conditional on one teacher" in alone


def test_later_teachers_may_be_of_another_code_and_machine() -> None:
    first, later = rows("kd", [0]), rows("kd", [1, 2], code_digest="later", cpu="other")
    kd = the(board(*first, *later), "kd")
    assert kd.enough
    assert common.mixed(kd) == "teachers of 2 kinds of machine and 2 code revisions"
    within = rows("kd", [0], seeds=4) + rows("kd", [0], code_digest="later")[4:]
    assert the(board(*within), "kd").note == "seeds of 2 code revisions"


def test_comparisons_are_over_all_teachers_and_over_the_first() -> None:
    found = board(*rows("kd"), *rows("at"), *rows("sp", [0]))
    whole, one = contrasts(found, "kd")
    assert (whole.seeds, whole.teachers, len(whole.rows)) == ((0, 1, 2, 3, 4), (0, 1, 2), 2)
    assert (one.teachers, sorted(g.method for g, _, _ in one.rows)) == ((0,), ["at", "kd", "sp"])
    assert "difference to kd over 5 seeds × 3 teachers" in markdown(found, whole, "kd")
    assert "difference to kd over 5 seeds, conditional on one teacher" in markdown(found, one, "kd")
    gaps = [line.split(" | ")[5] for line in markdown(found, one, "kd").splitlines() if line.startswith("| kd ")]
    values = [(score("kd", s, 0) - 60 - s) / 20 for s in range(5)]  # of the first teacher alone
    assert gaps == [f"{100 * np.mean([v * 20 for v in values]) / np.mean([20 - s for s in range(5)]):.0f} %"]
    (alike,) = contrasts(board(*rows("kd"), *rows("at")), "kd")  # one teacher alone would say nothing new
    assert len(alike.teachers) == 3


def test_check_asks_for_a_full_grid() -> None:
    def reasons(found: list[Row]) -> list[str]:
        return [problem.reason for problem in of_specs(in_order(found), {})]

    assert reasons(rows("kd")) == []
    (missing,) = reasons(rows("kd")[:-1])
    assert missing == (
        "5 seeds and 3 teachers make 15 runs, expected all: 1 are missing, such as seed=4 teacher.seed=2"
    )
    (chosen,) = reasons(rows("kd", [0, 2]))
    assert chosen == "teacher seeds are 0, 2, expected 0 to 1: none chosen, none left out"
    again = [*rows("kd"), row("kd", 1, 99.0, 61.0, teacher_seed=2, finished=1e9)]
    assert [reason[:35] for reason in reasons(again)] == ["seed 1 of teacher 2 was run before w"[:35]]


def test_a_release_names_teachers() -> None:
    (one,) = snapshot(build(in_order(rows("kd", [0, 1], seeds=3)))).values()
    assert list(one["seeds"]) == ["0", "0, teacher 1", "1", "1, teacher 1", "2", "2, teacher 1"]


# ---- what records say of their teacher ------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "seed": 0,
    "task": {"name": "classification"},
    "data": {"name": "glyphs", "labels": 940, "root": "/tmp/data", "noise": 0.0},
    "teacher": {
        "seed": 0,
        "replay": None,
        "trainer": {"epochs": 12},
        "data": {"name": "glyphs", "labels": 3760, "root": None, "noise": 0.0},
        "augment": {"name": "none"},
    },
}


def saved(root: Path, name: str, teacher: dict[str, Any], *, told: bool, **changes: Any) -> Path:
    """A record with its configuration; of before it told of its teacher where ``told`` is false."""
    config = {**CONFIG, "teacher": {**CONFIG["teacher"], **teacher}}
    hashed = spec_hash({**config, "dataset": "d" * 16}) if told else digest(config)
    record = make(run_id=name, spec_hash=hashed, **changes)
    record = record.model_copy(update={"teacher": teacher_of(config) if told else None})
    record = record.model_copy(update={"content_hash": content_hash(record)})
    folder = root / "classification" / "kd" / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record.model_dump_json())
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def test_a_teacher_is_what_it_learned_from() -> None:
    found = teacher_of(CONFIG)
    assert found.seed == 0
    assert found.options == {
        "replay": None,
        "trainer": {"epochs": 12},
        "data": {"name": "glyphs", "labels": 3760, "noise": 0.0},
        "augment": {"name": "none"},
    }
    own = {**CONFIG, "teacher": {"seed": 1, "data": {}, "replay": 4, "replay_dtype": "float16"}}
    assert teacher_of(own).options == {
        "replay": 4,
        "replay_dtype": "float16",
        "data": {"name": "glyphs", "labels": 940, "noise": 0.0},
        "augment": {"name": "none"},
    }


@pytest.mark.parametrize("told", [True, False])
def test_other_teacher_seeds_are_of_one_specification(tmp_path: Path, told: bool) -> None:
    for teacher in (0, 1, 2):
        saved(tmp_path, f"t{teacher}", {"seed": teacher}, told=told)
    found = read([tmp_path]).rows
    assert [r.teacher_seed for r in found] == [0, 1, 2] if told else sorted(r.teacher_seed for r in found) == [0, 1, 2]
    whole = spec_hash({**CONFIG, "dataset": "d" * 16})
    if told:
        assert {r.spec_hash for r in found} == {whole}
    else:  # the seed was a part of the hash then, and that of teacher 0 stays what it was
        assert [r.spec_hash for r in found if r.teacher_seed] == [whole, whole]


def test_teachers_made_in_another_way_are_another_setting(tmp_path: Path) -> None:
    saved(tmp_path, "usual", {}, told=True)
    assert [r.teaching for r in read([tmp_path]).rows] == [""]
    saved(tmp_path, "again", {}, told=True, seed=1)
    older = {k: v for k, v in CONFIG["teacher"].items() if k not in ("augment", "replay")}
    folder = saved(tmp_path, "older", {}, told=False, seed=2)
    config = {**CONFIG, "teacher": older | {"data": {"name": "glyphs", "labels": 3760}}}  # before there was noise
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    saved(tmp_path, "equal", {"data": {"labels": 940}, "trainer": {"epochs": 48}}, told=True)
    saved(tmp_path, "mixed", {"augment": {"name": "mixup", "alpha": 0.2}}, told=False)
    usual = "augment=none data.labels=3760 trainer.epochs=12"
    for _ in range(2):
        found = {r.run_id: r.teaching for r in read([tmp_path], cache=tmp_path / "cache").rows}
        assert found == {
            "usual": usual,
            "again": usual,
            "older": usual,
            "equal": "augment=none data.labels=940 trainer.epochs=48",
            "mixed": "augment=mixup data.labels=3760 trainer.epochs=12",
        }
    boards = build(read([tmp_path]).rows, minimum=1).boards
    assert len(boards) == 3
    assert f"teacher {usual}" in common.setting(boards[0])


def test_check_compares_the_teacher_with_the_configuration(tmp_path: Path) -> None:
    folder = saved(tmp_path, "kd-s0", {}, told=True)
    data = json.loads((folder / "run.json").read_text())
    data["teacher"]["options"]["data"]["labels"] = 940
    record = Record.model_validate(data | {"provenance": data["provenance"] | {"config_digest": _digest(folder)}})
    (folder / "run.json").write_text(record.model_copy(update={"content_hash": content_hash(record)}).model_dump_json())
    assert "teacher is not that of config.yaml" in {problem.reason for problem in check([tmp_path])[1]}


def _digest(folder: Path) -> str:
    return digest(yaml.safe_load((folder / "config.yaml").read_text()))


def test_a_twin_is_the_same_under_every_teacher(tmp_path: Path) -> None:
    def problems(scratch: float) -> list[str]:
        for teacher, alone in ((0, 0.6), (1, scratch)):
            scores: dict[str, Any] = {
                "teacher": {"test": {"accuracy": 0.8 + teacher / 100}},
                "scratch": {"test": {"accuracy": alone}},
                "student": {"test": {"accuracy": 0.7}},
            }
            saved(tmp_path / str(scratch), f"t{teacher}", {"seed": teacher}, told=True, scores=scores)
        return [problem.reason for problem in of_recipes(read([tmp_path / str(scratch)]).rows)]

    assert problems(0.6) == []  # the teachers differ, as they should
    assert [reason.partition(" is ")[0] for reason in problems(0.5)] == ["scores.scratch"] * 2
