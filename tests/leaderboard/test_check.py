from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench import config
from leaderboard.check import check, percent
from leaderboard.rows import RECORDS
from tests.leaderboard.make_records import config as config_of
from tests.leaderboard.make_records import records, write

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"task": ["classification", "pointcloud"], "method": ["none", "kd", "fitnet"]}
    monkeypatch.setattr(config, "options", lambda group: known.get(group, ["none"]))


def one(tmp_path: Path, change: dict[str, Any]) -> list[str]:
    """The reasons why one changed record is refused."""
    from kdbench.record import Record, content_hash

    record = next(r for r in records(20, seed=3, tasks=1, specs=4) if r.method == "kd" and r.status == "ok")
    data = json.loads(record.model_dump_json())
    for key, value in change.items():
        *parents, last = key.split("__")
        node = data
        for parent in parents:
            node = node[parent]
        node[last] = value
    changed = Record.model_validate(data)
    changed = changed.model_copy(update={"content_hash": content_hash(changed)})
    folder = tmp_path / "classification" / "kd" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(record)))
    (folder / "run.json").write_text(changed.model_dump_json())
    return [problem.reason for problem in check([tmp_path])[1]]


def test_good_records_pass(tmp_path: Path) -> None:
    write(tmp_path, records(12, seed=3, tasks=2, seeds=3, specs=3))
    found, problems = check([tmp_path])
    assert (len(found.rows), problems) == (12, [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "clasification"}, "there is no task 'clasification': did you mean 'classification'?"),
        ({"method": "fitnets"}, "there is no method 'fitnets': did you mean 'fitnet'?"),
        ({"quant": "int3"}, "there is no quant 'int3'"),
        ({"origin": "reported"}, "reported numbers belong into anchors.csv"),
        ({"scores__student__test__top1": 101.0}, "scores.student.test.top1 is 101, expected 0 to 100"),
        ({"scores__teacher__test__ece": -0.5}, "scores.teacher.test.ece is -0.5, expected 0 to 100"),
        ({"scores__scratch__test__nll": -1.0}, "scores.scratch.test.nll is -1, expected 0 to inf"),
        ({"gap_closed": 1000.0}, "gap_closed is 1000"),
        ({"cost__wall_s": -1.0}, "wall_s is -1, expected 0 or more"),
        ({"cost__added_params": -1}, "added_params is -1"),
        ({"models__student__latency_ms": -1.0}, "latency_ms is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"provenance__finished": "2020-01-01T00:00:00Z"}, "ends before it starts"),
        ({"provenance__finished": "2999-01-01T00:00:00Z"}, "ends in the future"),
        ({"provenance__config_digest": "f" * 16}, "config.yaml beside it is not that of the run"),
        ({"dataset__name": "<b>"}, "markup"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    reasons = one(tmp_path, change)
    assert len(reasons) == 1
    assert says in reasons[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.yaml is not beside it"),
        ("a: [", "config.yaml beside it cannot be read"),
        ("a: ${b}\n", "config.yaml beside it"),
        ("seed: 5\n", "config.yaml beside it is not that of the run"),
        ("", "config.yaml beside it is not that of the run"),
    ],
)
def test_the_configuration_lies_beside_it(tmp_path: Path, text: str | None, says: str) -> None:
    write(tmp_path, records(1, seed=3))
    (path,) = tmp_path.glob("*/*/*/config.yaml")
    path.unlink() if text is None else path.write_text(text)
    _, (problem,) = check([tmp_path])
    assert says in problem.reason


def test_a_borrowed_spec_hash(tmp_path: Path) -> None:
    good = list(records(3, seed=3, tasks=1, seeds=3, specs=1))
    write(tmp_path, good)
    assert good[1].dataset is not None
    borrowed = good[1].model_copy(
        update={"run_id": "borrowed", "dataset": good[1].dataset.model_copy(update={"digest": "other"})}
    )
    write(tmp_path, [borrowed])
    _, problems = check([tmp_path])
    assert len(problems) == 1
    assert "spec_hash" in problems[0].reason


def test_several_problems_of_several_files(tmp_path: Path) -> None:
    write(tmp_path, records(6, seed=3, tasks=1, seeds=2, specs=3))
    first, second, *_ = sorted(tmp_path.glob("*/*/*/run.json"))
    first.write_bytes(b"")
    second.write_text(second.read_text().replace('"preset": "', '"preset": "x'))
    found, problems = check([tmp_path])
    assert len(found.rows) == 4
    assert [problem.path for problem in problems] == sorted(map(str, (first, second)))


def test_committed_records_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert check([RECORDS])[1] == []


def test_percent_metrics() -> None:
    assert all(map(percent, ("top1", "map_3d_moderate_r40", "worst_class", "miou", "iou_03", "pixel_accuracy", "ece")))
    assert not any(map(percent, ("nll", "abs_rel", "rmse", "delta1", "remap")))
