"""Records that were edited and hashed anew, or chosen: a good tree of them, and one change at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.base.outcomes import OUTCOMES, Outcomes, pack
from kdbench.configuration import config
from kdbench.records.record import content_hash, write_record
from kdbench.records.schema import Record
from leaderboard.check import check
from tests.leaderboard.make_records import records, write
from tests.records.test_record import make

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"task": ["classification"], "method": ["none", "kd", "fitnet", "at"]}
    monkeypatch.setattr(config, "options", lambda group: known.get(group, ["none"]))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three seeds of three methods beside the same twins."""
    write(tmp_path, (r for r in records(12, seed=3, tasks=1, seeds=3, specs=4) if r.method != "none"))
    assert check([tmp_path])[1] == []
    return tmp_path


def run(tree: Path, method: str, seed: int = 0) -> Path:
    (path,) = (tree / "classification" / method).glob(f"*-s{seed}-*/run.json")
    return path


def edit(path: Path, change: Edit) -> None:
    data = json.loads(path.read_text())
    change(data)
    record = Record.model_validate(data)
    path.write_text(record.model_copy(update={"content_hash": content_hash(record)}).model_dump_json())


def problems(tree: Path) -> dict[str, str]:
    return {problem.path: problem.reason for problem in check([tree])[1]}


def at(*keys: str, value: Any) -> Edit:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize("role", ["scratch", "teacher"])
def test_what_methods_share_cannot_be_edited_in_one_of_them(tree: Path, role: str) -> None:
    path = run(tree, "kd")

    def lower(data: dict[str, Any]) -> None:
        scores = data["scores"]
        scores[role]["test"]["top1"] -= 1.0
        gap = scores["teacher"]["test"]["top1"] - scores["scratch"]["test"]["top1"]
        data["gap_closed"] = (scores["student"]["test"]["top1"] - scores["scratch"]["test"]["top1"]) / gap

    edit(path, lower)
    found = problems(tree)
    assert list(found) == [str(path)]
    assert f"scores.{role} is" in found[str(path)]
    assert "of the other methods of this recipe it is" in found[str(path)]


def test_a_teacher_of_the_method_s_own_is_let_be(tree: Path) -> None:
    for seed in range(3):

        def own(data: dict[str, Any]) -> None:
            data["scores"]["teacher_privileged"] = data["scores"]["teacher"]
            data["scores"]["teacher"] = {"test": {"top1": 90.0}}
            data["gap_closed"], data["gap_reason"] = None, "x"

        edit(run(tree, "kd", seed), own)
    assert problems(tree) == {}


def test_a_score_is_a_share_of_the_test_set(tree: Path) -> None:
    path = run(tree, "kd")
    edit(path, lambda data: data.update(gap_closed=None, gap_reason="x"))
    edit(path, at("scores", "student", "test", "top1", value=77.77))
    assert problems(tree) == {str(path): "scores.student.test.top1 is 77.77, no share of 500 test samples (388.85)"}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("factor", 3.0, "tuning.factor is 3, the best of its trials is 0.3"),
        ("factor", 5.0, "tuning.factor is 5, which no trial had: 1, 0.3, 3, 0.1"),
        ("trials", 6, "tuning.trials is 6, tuning.scores has 4"),
    ],
)
def test_a_factor_is_the_best_of_its_trials(tree: Path, key: str, value: float, says: str) -> None:
    path = run(tree, "kd")
    assert json.loads(path.read_text())["tuning"] is not None
    edit(path, at("tuning", key, value=value))
    assert says in problems(tree).values()


def test_of_equal_trials_the_earlier_is_the_best(tree: Path) -> None:
    tied = {"1": 51.0, "0.3": 51.0, "3": 49.5, "0.1": None}
    for seed in range(3):
        edit(run(tree, "kd", seed), at("tuning", "scores", value=tied))
    assert set(problems(tree).values()) == {"tuning.factor is 0.3, the best of its trials is 1"}


def test_a_record_has_the_digest_of_its_curves(tmp_path: Path) -> None:
    text = "epoch,train/kd\n0,2.0\n1,1.0\n"
    folder = write_record(tmp_path, make(), {"config.yaml": "a: 1\n", "metrics.csv": text})
    written = json.loads((folder / "run.json").read_text())
    assert written["files"] == {"metrics.csv": sha256(text.encode()).hexdigest()}
    source = tmp_path / "curves"
    source.write_text(text)
    again = write_record(tmp_path / "b", make(), {"config.yaml": "a: 1\n", "metrics.csv": source})
    assert json.loads((again / "run.json").read_text())["files"] == written["files"]
    assert json.loads((again / "run.json").read_text())["content_hash"] == written["content_hash"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch,train/kd\n0,0.5\n1,0.2\n", "metrics.csv beside it is not that of the run: it was edited"),
        (None, "metrics.csv is not beside it, its digest is in the record"),
    ],
)
def test_curves_that_are_not_those_of_the_run(tree: Path, text: str | None, says: str) -> None:
    path = run(tree, "kd")
    good = "epoch,train/kd\n0,0.5\n1,0.1\n"
    path.with_name("metrics.csv").write_text(good)
    edit(path, lambda data: data.update(files={"metrics.csv": sha256(good.encode()).hexdigest()}))
    assert problems(tree) == {}
    path.with_name("metrics.csv").unlink() if text is None else path.with_name("metrics.csv").write_text(text)
    assert problems(tree) == {str(path): says}


def test_curves_end_where_the_record_says(tree: Path) -> None:
    path = run(tree, "kd")
    path.with_name("metrics.csv").write_text("epoch,train/kd\n0,0.5\n1,0.2\n2,\n")
    assert problems(tree) == {str(path): "terms.kd.last is 0.1, metrics.csv ends at 0.2"}


def test_seeds_are_neither_chosen_nor_left_out(tree: Path) -> None:
    run(tree, "kd", 1).unlink()
    assert list(problems(tree).values()) == ["seeds are 0, 2, expected 0 to 1: none chosen, none left out"]


def test_a_run_lies_in_its_own_folder(tree: Path) -> None:
    path = run(tree, "kd")
    moved = path.parent.rename(path.parent.with_name("other"))
    assert problems(tree) == {str(moved / "run.json"): f"run_id is {path.parent.name!r}, its folder is 'other'"}


def test_a_seed_that_was_run_until_it_fitted_needs_a_reason(tree: Path) -> None:
    first = run(tree, "kd")
    older = json.loads(first.read_text())["content_hash"]
    again = first.parent.with_name("again")
    again.mkdir()
    for name in ("run.json", "config.yaml"):
        (again / name).write_bytes((first.parent / name).read_bytes())

    def better(data: dict[str, Any]) -> None:
        data["run_id"] = "again"
        data["scores"]["student"]["test"]["top1"] += 1.0
        data["gap_closed"], data["gap_reason"] = None, "x"
        data["provenance"]["finished"] = "2026-08-01T00:00:00Z"

    edit(again / "run.json", better)
    (reason,) = problems(tree).values()
    assert reason.startswith("seed 0 was run before with other scores")
    assert f"{older}: reason" in reason
    (tree / "changes.yaml").write_text(f"{older}: a bug in the loader, see the log of changes\n")
    assert problems(tree) == {}
    (tree / "changes.yaml").write_text(f"{older}:\n")
    assert "expected lines of the form" in problems(tree)[str(tree / "changes.yaml")]


def test_outcomes_are_those_of_the_run_and_make_its_scores(tree: Path) -> None:
    def write(**right: int) -> None:
        values = {
            name: np.stack([np.arange(500) < count, np.ones(500)], 1).astype(np.float64)
            for name, count in right.items()
        }
        content = pack(Outcomes("percent", "ids", values)) or b""
        path.with_name(OUTCOMES).write_bytes(content)
        edit(path, lambda data: data.update(files={OUTCOMES: sha256(content).hexdigest()}))

    path = run(tree, "kd", 0)
    scores = {role: part["test"]["top1"] for role, part in json.loads(path.read_text())["scores"].items()}
    right = {role: round(5 * score) for role, score in scores.items() if role != "teacher"}
    write(**right)
    assert problems(tree) == {}
    write(**right | {"student": right["student"] - 1})
    told = problems(tree)[str(path)]
    assert told == f"scores.student.test.top1 is {scores['student']:g}, {OUTCOMES} gives {scores['student'] - 0.2:g}"
    path.with_name(OUTCOMES).write_bytes(b"x")
    assert problems(tree)[str(path)] == f"{OUTCOMES} beside it is not that of the run: it was edited"
    path.with_name(OUTCOMES).unlink()
    assert problems(tree)[str(path)] == f"{OUTCOMES} is not beside it, its digest is in the record"


def test_a_factor_under_several_seeds_is_judged_by_their_mean(tree: Path) -> None:
    path = run(tree, "kd", 0)
    own = json.loads(path.read_text())["tuning"]["scores"]
    by_seed = {factor: [score - 1, score + 1] for factor, score in own.items()}
    edit(path, at("tuning", "by_seed", value=by_seed))
    assert problems(tree) == {}
    edit(path, at("tuning", "by_seed", value=by_seed | {"1": [50.0, 52.0]}))
    assert problems(tree)[str(path)] == "tuning.scores.1 is 50.0, the mean of tuning.by_seed is 51.0"
