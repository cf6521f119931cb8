from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.base.digest import digest
from kdbench.configuration import config
from kdbench.records.record import VOLATILE, content_hash, spec_hash
from kdbench.records.schema import Record
from leaderboard.check import check, percent
from leaderboard.rows import RECORDS
from tests.leaderboard.make_records import config as config_of
from tests.leaderboard.make_records import records, write

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"task": ["classification", "pointcloud"], "method": ["none", "kd", "fitnet"]}
    monkeypatch.setattr(config, "options", lambda group: known.get(group, ["none"]))


def a_kd() -> Record:
    return next(r for r in records(20, seed=3, tasks=1, specs=4) if (r.method, r.status, r.seed) == ("kd", "ok", 0))


def one(tmp_path: Path, change: dict[str, Any], settings: dict[str, Any] | None = None) -> list[str]:
    """The reasons why one changed record is refused; ``settings`` are those of another configuration that ran."""
    record = a_kd()
    data = json.loads(record.model_dump_json())
    configured = config_of(record) | (settings or {})
    data["provenance"]["config_digest"] = digest(configured)
    for key, value in change.items():
        *parents, last = key.split("__")
        node = data
        for parent in parents:
            node = node[parent]
        node[last] = value
    changed = Record.model_validate(data)
    changed = changed.model_copy(update={"content_hash": content_hash(changed)})
    folder = tmp_path / "classification" / "kd" / changed.run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(configured))
    (folder / "run.json").write_text(changed.model_dump_json())
    return [problem.reason for problem in check([tmp_path])[1]]


def test_good_records_pass(tmp_path: Path) -> None:
    write(tmp_path, records(12, seed=3, tasks=2, seeds=3, specs=3))
    found, problems = check([tmp_path])
    assert (len(found.rows), problems) == (12, [])


@pytest.mark.parametrize("word", ["seed=+{0}", "seed=0_{0}", "method='kd'"])
def test_another_way_to_write_a_command_is_none_of_its_faults(tmp_path: Path, word: str) -> None:
    seed = a_kd().seed
    assert one(tmp_path, {"command": f"python -m kdbench {shlex.quote(word.format(seed))}"}) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"origin": "reported"}, "reported numbers belong into anchors.csv"),
        ({"scores__student__test__top5": 101.0}, "scores.student.test.top5 is 101, expected 0 to 100"),
        ({"scores__student__best_on_val__top1": 900.0}, "scores.student.best_on_val.top1 is 900, expected 0 to 100"),
        ({"scores__converted": {"test": {"top1": 900.0}}}, "scores.converted.test.top1 is 900, expected 0 to 100"),
        ({"scores__peer": {"test": {"top1": -5.0}}}, "scores.peer.test.top1 is -5, expected 0 to 100"),
        ({"scores__teacher_privileged": {"test": {"top1": 101.0}}}, "scores.teacher_privileged.test.top1 is 101"),
        (
            {"scores__student__test__top1": None, "gap_closed": None, "gap_reason": "x"},
            "scores.student.test.top1 is null",
        ),
        ({"gap_closed": 0.9}, "gap_closed is 0.9, the scores give -0.25"),
        ({"scores__scratch__test__top1": None}, "the scores give nan"),
        ({"scores__teacher__test__top1": 1.0}, "the scores give nan"),
        ({"provenance__dirty": True}, "provenance.dirty is true, expected a run of committed code"),
        ({"spec_hash": "f" * 16}, "spec_hash is not that of config.yaml and dataset.digest"),
        ({"dataset__digest": "other"}, "spec_hash is not that of config.yaml and dataset.digest"),
        ({"command": "python -m kdbench method=at"}, "method is 'kd', the command says 'at'"),
        ({"command": "python -m kdbench task=pointcloud"}, "task is 'classification', the command says 'pointcloud'"),
        ({"command": "python -m kdbench seed=9"}, "the command says '9'"),
        ({"command": "python -m kdbench 'seed=1: 2: 3'"}, "the command says '1: 2: 3'"),
        ({"pair": "c_d"}, "pair is 'c_d', config.yaml says 'resnet32x4_resnet8x4'"),
        ({"preset": "paper"}, "preset is 'paper', config.yaml says 'quick'"),
        ({"scores__teacher__test__ece": -0.5}, "scores.teacher.test.ece is -0.5, expected 0 to 100"),
        ({"scores__scratch__test__nll": -1.0}, "scores.scratch.test.nll is -1, expected 0 to inf"),
        ({"cost__wall_s": -1.0}, "wall_s is -1, expected 0 or more"),
        ({"cost__added_params": -1}, "added_params is -1"),
        ({"models__student__latency_ms": -1.0}, "latency_ms is -1"),
        ({"provenance__finished": "2020-01-01T00:00:00Z"}, "ends before it starts"),
        ({"provenance__finished": "2999-01-01T00:00:00Z"}, "it ends in the future, 2999-01-01 00:00 UTC"),
        ({"provenance__config_digest": "f" * 16}, "config.yaml beside it is not that of the run"),
        ({"dataset__name": "<b>"}, "markup"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    reasons = one(tmp_path, change)
    assert len(reasons) == 1
    assert says in reasons[0]


def test_foreign_code_is_refused(tmp_path: Path) -> None:
    word = "python -m kdbench student._target_=os.system"
    (own, beside) = sorted(one(tmp_path, {"command": word}, {"student": {"_target_": "os.system"}}))[:2]
    assert own == "command: 'os.system' is foreign code or configuration, expected names of trusted.txt"
    assert beside == "config.yaml names 'os.system', which is not of trusted.txt: foreign code"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("task", "clasification", "there is no task 'clasification': did you mean 'classification'?"),
        ("method", "fitnets", "there is no method 'fitnets': did you mean 'fitnet'?"),
        ("quant", "int3", "there is no quant 'int3'"),
        ("seed", -1, "seed is -1, expected 0 or more"),
    ],
)
def test_a_wrong_name_contradicts_the_configuration_too(tmp_path: Path, name: str, value: Any, says: str) -> None:
    first, *others = one(tmp_path, {name: value})
    assert says in first
    assert any(f"{name} is {value!r}, config.yaml says" in other for other in others)


@pytest.mark.parametrize(
    "settings", [{"seed": 77}, {"method": {"name": "dkd"}}, {"augment": {"name": "mixup"}}, {"quant": "x"}]
)
def test_a_configuration_of_another_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    first, *_ = one(tmp_path, {}, settings)
    assert re.fullmatch(rf"{next(iter(settings))} is .*, config.yaml says .*", first)


def test_networks_are_those_of_the_configuration(tmp_path: Path) -> None:
    record = a_kd()
    ran = {"student": {"_target_": "torch.nn.Small"}, "teacher": {"_target_": "torch.nn.Large"}}
    own = config_of(record) | {"pair": {"name": record.pair} | {n: {"architecture": a} for n, a in ran.items()}}
    spec = spec_hash({**own, "dataset": record.dataset.digest if record.dataset else None})
    settled = {"spec_hash": spec, "provenance": record.provenance.model_copy(update={"config_digest": digest(own)})}
    for said, problems in ((ran, 0), ({**ran, "student": {"_target_": "torch.nn.Other"}}, 1)):
        folder = tmp_path / str(problems)
        write(folder, [record.model_copy(update={**settled, "networks": said})])
        (path,) = folder.rglob("config.yaml")
        path.write_text(yaml.safe_dump(own))
        _, found = check([folder])
        assert len(found) == problems
    assert "networks are Large → Other #" in found[0].reason
    assert "config.yaml says Large → Small #" in found[0].reason


def test_a_gap_beyond_belief(tmp_path: Path) -> None:
    scores = {"teacher": {"test": {"top1": 50.2}}, "scratch": {"test": {"top1": 50.0}}}
    student = {"student": {"test": {"top1": 80.0}}}
    reasons = one(tmp_path, {"scores": scores | student, "gap_closed": 30 / (50.2 - 50.0)})
    assert reasons == ["gap_closed is 150, expected -100 to 100"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.yaml is not beside it"),
        ("a: [", "config.yaml beside it cannot be read"),
        ("a: ${b}\n", "config.yaml beside it"),
        ("a: .nan\n", "config.yaml beside it cannot be read"),
        ("- a\n", "config.yaml beside it cannot be read"),
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
    _, (own, other) = check([tmp_path])
    assert "spec_hash is not that of config.yaml" in own.reason
    assert "has the same, but other data" in other.reason


def test_several_problems_of_several_files(tmp_path: Path) -> None:
    write(tmp_path, records(6, seed=3, tasks=1, seeds=2, specs=3))
    first, second, *_ = sorted(tmp_path.glob("*/*/*/run.json"))
    first.write_bytes(b"")
    second.write_text(second.read_text().replace('"preset": "', '"preset": "x'))
    found, problems = check([tmp_path])
    assert len(found.rows) == 4
    assert [problem.path for problem in problems] == sorted(map(str, (first, second)))


def test_the_readme_of_the_records_names_what_the_content_hash_leaves_out() -> None:
    text = (RECORDS / "README.md").read_text()
    assert [name for name in VOLATILE if name != "content_hash" and f"`{name}`" not in text] == []
    assert "covers every number" not in text


def test_committed_records_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert check([RECORDS])[1] == []


def test_percent_metrics() -> None:
    assert all(map(percent, ("top1", "map_3d_moderate_r40", "worst_class", "miou", "iou_03", "pixel_accuracy", "ece")))
    assert not any(map(percent, ("nll", "abs_rel", "rmse", "delta1", "remap")))
