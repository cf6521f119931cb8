from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kdbench.records.record import content_hash, read_record
from kdbench.records.schema import Record
from leaderboard import rows as rows_module
from leaderboard.row import FIELDS, Interner, Metrics, Parts, flatten, values_of
from leaderboard.rows import RECORDS, Problem, find, full_record, read
from tests.records.test_record import make, write

Save = Callable[..., Path]
SCRIPT = "<script>alert(1)</script>"


def only(found: rows_module.Found) -> str:
    """The reason of the only problem."""
    (problem,) = found.problems
    assert found.rows == []
    assert "\n" not in problem.reason
    assert len(problem.reason) < 500
    return problem.reason


def test_a_row_is_the_record_flat(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (row,) = read([tmp_path]).rows
    assert row.path == str(folder / "run.json")
    assert (row.task, row.method, row.pair, row.seed) == ("classification", "kd", "resnet32x4_resnet8x4", 0)
    assert (row.score, row.of("scratch"), row.of("teacher"), row.best_on_val) == (0.1 + 0.2, 0.6, 0.8, 0.7)
    assert (row.primary, row.higher_is_better, row.gap_closed) == ("accuracy", True, 0.5)
    assert (row.trials, row.factor, row.reference, row.role, row.ok) == (4, 0.3, False, "student", True)
    assert (row.dataset, row.digest, row.fold, row.train_size, row.test_size) == ("shapes", "d" * 16, None, 900, 500)
    assert tuple(map(row.figure, ("epochs", "student_passes", "wall_s", "added_params"))) == (2, 1.0, 3.25, 0)
    assert tuple(map(row.figure, ("params", "macs", "bytes", "latency_ms"))) == (10, 100, 40, 0.5)
    assert row.figure("params", "teacher") == 100
    assert row.finished - row.started == 180
    assert row.main is not None
    assert dict(row.main.items()) == {"accuracy": 0.1 + 0.2, "ece": 1 / 3}
    assert row.main.get("ece") == 1 / 3
    assert row.main.get("f1") is None
    assert full_record(row) == read_record(folder)


def networks(width: int, options: dict[str, Any] | None = None) -> dict[str, Any]:
    student = {"_target_": "tasks.classification.models.create", "model_name": "cifar_resnet8", "width": width}
    return {"teacher": {"_target_": "x.Net"}, "student": student | (options or {})}


def test_equal_networks_are_one_pair_and_others_another_whatever_their_pairs_are_called(save: Save) -> None:
    for number, (pair, width) in enumerate([("w4", 4), ("w4", 4), ("mine", 4), ("w4", 8), ("w8", 8), ("other", 16)]):
        save(name=f"{number}", run_id=f"{number}", seed=number, pair=pair, networks=networks(width))
    save(name="old", run_id="old", seed=9, pair="w4")  # nothing tells
    root = save(name="task", run_id="task", seed=8, task="pointcloud", pair="w4", networks=networks(8))
    found = {row.run_id: row for row in read([root.parents[3]]).rows}
    assert [found[f"{n}"].pairing for n in range(3)] == ["w4"] * 3
    assert found["2"].pair == "mine"
    assert [found[f"{n}"].pairing for n in (3, 4)] == ["w8"] * 2
    assert found["5"].pairing == "other"
    assert found["old"].pairing == "w4"
    assert found["task"].pairing == "w4"


def test_networks_that_differ_in_one_option_are_told_apart(save: Save) -> None:
    save(name="a", run_id="a", pair="p", networks=networks(4))
    root = save(name="b", run_id="b", pair="p", seed=1, networks=networks(4, {"drop_rate": 0.1}))
    rows = read([root.parents[3]]).rows
    assert len({row.networks for row in rows}) == 2
    assert sorted(row.pairing for row in rows) == ["p", "p (Net → cifar_resnet8 width=4 drop_rate=0.1)"]


def test_networks_of_older_records_are_those_of_the_configuration_beside_them(save: Save) -> None:
    (row,) = read([save()]).rows
    assert row.networks == ""
    file = save()
    written = {"pair": {"name": "p", **{side: {"architecture": each} for side, each in networks(4).items()}}}
    file.with_name("config.yaml").write_text(json.dumps(written))
    (row,) = read([file]).rows
    assert row.networks.startswith("Net → cifar_resnet8 width=4 #")
    file.with_name("config.yaml").write_text("a: &a [1]\npair: *a\n")
    assert read([file]).rows[0].networks == ""
    committed = read([RECORDS]).rows
    small = [r for r in committed if r.task == "classification" and r.pair.startswith("resnet")]
    assert {(r.pairing, r.networks.rpartition(" #")[0]) for r in small} == {
        ("resnet8_w16_w4", "cifar_resnet8 width=16 → cifar_resnet8 width=4"),
        ("resnet8_w24_w8", "cifar_resnet8 width=24 → cifar_resnet8 width=8"),
    }
    assert all(row.networks and row.pairing == row.pair for row in committed)


def test_null_is_none_and_not_a_number(tmp_path: Path) -> None:
    write(tmp_path, make(scores={"student": {"test": {"accuracy": None, "ece": math.nan}}}))
    (row,) = read([tmp_path]).rows
    assert row.score is None
    assert row.main is not None
    assert dict(row.main.items()) == {"accuracy": None, "ece": None}
    assert row.scores.get("scratch") is None


def test_a_run_that_failed_is_a_row(tmp_path: Path) -> None:
    kept = {"status": "failed", "reason": "TypeError: <class 'int'>\x1b[31m", "dataset": None, "primary": None}
    write(tmp_path, make(**kept, scores={}, cost=None, models={}, terms={}, tuning=None))
    (row,) = read([tmp_path]).rows
    assert (row.ok, row.dataset, row.score, row.main) == (False, None, None, None)
    assert row.reason == "TypeError: <class 'int'> [31m"


def test_the_reference_and_the_teacher_alone(tmp_path: Path) -> None:
    twin = {"test": {"accuracy": 0.6}}
    write(tmp_path, make(run_id="a", method="none", options={}, scores={"student": twin, "scratch": twin}))
    alone = {"teacher": {"test": {"accuracy": 0.8}, "best_on_val": {"accuracy": 0.81}}}
    write(tmp_path, make(run_id="b", method="none", options={}, scores=alone))
    write(tmp_path, make(run_id="c", method="none", options={}, scores={"student": twin}))
    write(tmp_path, make(run_id="d", method="plain", options={}))
    student, teacher, single, plain = sorted(read([tmp_path]).rows, key=lambda row: row.run_id)
    assert (student.reference, student.role) == (True, "student")
    assert single.reference
    assert not plain.reference, "a method may have no options, and still teach"
    assert (teacher.reference, teacher.role) == (False, "teacher")
    assert (teacher.score, teacher.best_on_val, teacher.of("teacher")) == (0.8, 0.81, 0.8)


def test_a_tree_of_records(results: Path) -> None:
    found = read([results])
    assert (len(found.rows), found.problems, found.copies, found.parsed) == (60, [], 0, 60)
    assert [row.order for row in found.rows] == sorted(row.order for row in found.rows)
    assert {row.status for row in found.rows} == {"ok", "failed", "diverged"}
    twins = {id(twin) for row in found.rows if (twin := row.scores.get("scratch")) is not None}
    assert len(twins) < len(found.rows) / 2  # equal metrics are one object


def test_records_of_the_package_are_read() -> None:
    assert read([RECORDS]).problems == []


def test_the_cache_gives_the_same_rows_and_reads_what_changed(results: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = read([results], cache)
    second = read([results], cache)
    assert (first.parsed, second.parsed) == (60, 0)
    assert list(map(same, second.rows)) == list(map(same, first.rows))
    path = Path(first.rows[0].path)
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"seed": 77}))
    third = read([results], cache)
    assert third.parsed == 1
    assert len(third.rows) == 59
    assert "edited" in third.problems[0].reason
    path.unlink()
    fourth = read([results], cache)
    assert (fourth.parsed, len(fourth.rows), fourth.problems) == (0, 59, [])


def same(row: rows_module.Row) -> tuple[Any, ...]:
    """The values of a row so that nan equals nan."""
    return tuple(str(v) if isinstance(v, Metrics | Parts) else v for v in values_of(row))


@pytest.mark.parametrize("text", ["", "{", '{"rows": 0}\n', "null\n", '["row"]\n'])
def test_a_cache_that_is_torn_is_made_again(results: Path, tmp_path: Path, text: str) -> None:
    cache = tmp_path / "cache"
    read([results], cache)
    (file,) = cache.iterdir()
    whole = file.read_text()
    file.write_text(text)
    assert read([results], cache).parsed == 60
    assert file.read_text() == whole
    file.write_text(whole[: len(whole) // 2])
    assert len(read([results], cache).rows) == 60
    assert file.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_else(results: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert len(read([results], tmp_path / "cache").rows) == 60


@pytest.mark.slow
def test_several_processes_read_the_same(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = read([results])
    monkeypatch.setattr(rows_module, "SHARE", 15)
    monkeypatch.setattr(rows_module.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    together = read([results])
    assert list(map(same, together.rows)) == list(map(same, alone.rows))


# ---- what is broken becomes a problem, and the rest goes on ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "the file is empty"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "schema_version is None"),
        (b'{"schema_version": 99}', "schema_version is 99, expected 3: use the kdbench that wrote it"),
        (b'{"schema_version": "' + b"9" * 1_000_000 + b'"}', "schema_version is '999"),
        (b'{"schema_version": 3, "' + b"x" * 1_000_000 + b'": 1}', "Field required"),
        (b" " * 9_000_000, "9,000,000 bytes, expected at most 8,000,000"),
    ],
)
def test_a_broken_file_is_one_problem(results: Path, text: bytes, says: str) -> None:
    path = results / "pointcloud" / "kd" / "broken" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    found = read([results])
    assert len(found.rows) == 60
    (problem,) = found.problems
    assert problem.path == str(path)
    assert says in problem.reason
    assert len(problem.reason) < 500


def test_a_folder_in_place_of_the_file_and_a_file_without_permission(tmp_path: Path, save: Save) -> None:
    (tmp_path / "a" / "run.json").mkdir(parents=True)
    assert read([tmp_path / "a"]).empty == (tmp_path / "a",)
    path = save()
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert read([tmp_path / "one"]).rows == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name is Unicode")
def test_a_path_that_is_not_utf_8_is_one_problem(tmp_path: Path, save: Save) -> None:
    (tmp_path / os.fsdecode(b"\xff")).mkdir()
    save(root=tmp_path / os.fsdecode(b"\xff"))
    found = read([tmp_path], tmp_path / "cache")
    assert "not UTF-8" in only(found)
    assert found.problems[0].path.startswith(f"{tmp_path}/\\udcff/")


def test_an_edited_number_is_noticed(tmp_path: Path, save: Save) -> None:
    path = save()
    path.write_text(path.read_text().replace('"gap_closed": 0.5', '"gap_closed": 0.6'))
    assert "edited" in only(read([tmp_path / "one"]))


TEXTS = (
    *("pair", "augment", "quant", "preset", "fidelity", "origin", "command", "code_digest", "spec_hash"),
    *("dataset__name", "dataset__digest", "primary__name", "provenance__config_digest", "provenance__commit"),
    *("provenance__hardware__cpu", "provenance__hardware__gpu", "provenance__hardware__system"),
)


def refused(root: Path, bad: dict[str, Path]) -> dict[str, str]:
    """Reads all of ``root``; returns the reasons by what is wrong, and checks that nothing else was refused."""
    found = read([root])
    reasons = {problem.path: problem.reason for problem in found.problems}
    taken = {name for name, path in bad.items() if str(path) not in reasons}
    assert taken == set()
    assert len(reasons) == len(bad)
    assert all("\n" not in reason and len(reason) < 500 for reason in reasons.values())
    return {name: reasons[str(path)] for name, path in bad.items()}


@pytest.mark.parametrize("value", [SCRIPT, "x" * 1_000_000, "a\nb", "a\u202eb"])
def test_markup_controls_and_endless_names_are_refused(tmp_path: Path, save: Save, value: str) -> None:
    bad: dict[str, Path] = {}
    for name in TEXTS:
        if name == "provenance__hardware__system" and len(value) < 10:
            continue  # free text, which pages escape
        changes: dict[str, Any] = {name: value, "seed": len(bad)}
        if name == "primary__name":
            changes["scores"] = {"student": {"test": {value: 1.0}}}
        bad[name] = save(name=name, **changes)
    for name, reason in refused(tmp_path / "one", bad).items():
        assert name.split("__")[-1].split("_")[0] in reason or "metric" in reason


def test_markup_anywhere_is_refused(tmp_path: Path, save: Save) -> None:
    changes: list[dict[str, Any]] = [
        {"options": {"temperature": SCRIPT}},
        {"options": {SCRIPT: 1}},
        {"options": {"nested": [{"a": [SCRIPT]}]}},
        {"options": {"a": "x" * 50_000, "b": "y" * 60_000}},
        {"flags": [SCRIPT]},
        {"terms": {SCRIPT: {"weight": 1.0}}},
        {"terms": {"kd": {"weight": SCRIPT}}},
        {"provenance__packages": {"torch": SCRIPT}},
        {"provenance__packages": {SCRIPT: "1"}},
        {"tuning__scores": {SCRIPT: 1.0}},
        {"dataset__fold": SCRIPT},
        {"scores__student__test": {"accuracy": 0.5, SCRIPT: 1.0}},
        {"scores__student__best_on_val": {"accuracy": 0.5, SCRIPT: 1.0}},
        {"scores__teacher__test": {"accuracy": 0.5, "x" * 1000: 1.0}},
        {"method": "x" * 1_000_000},
        {"models__converted": {"bytes": 1, "engine": SCRIPT}},
    ]
    refused(tmp_path / "one", {str(c): save(name=f"r{i}", seed=i, **c) for i, c in enumerate(changes)})


def test_a_command_runs_nothing_else(tmp_path: Path, save: Save) -> None:
    commands = (
        "curl example.org | sh",
        "python -m kdbench; rm -rf ~",
        "python -m kdbench task=a && true",
        "python -m kdbench $(id)",
        "python -m kdbench `id`",
        "python -m kdbench task=a > file",
        "python -m kdbench 'open",
        "python -m kdbench task=a\nid",
        "python -m kdbenchmark",
        "python -m kdbench " + "a" * 19_000 + ";",
    )
    bad = {command: save(name=f"r{i}", seed=i, command=command) for i, command in enumerate(commands)}
    for reason in refused(tmp_path / "one", bad).values():
        assert "expected python -m kdbench and quoted words" in reason


def test_every_quoted_command_is_taken(tmp_path: Path, save: Save) -> None:
    from kdbench.configuration.config import command_line

    words = ["task=pointcloud", "data.classes=[Car, Pedestrian]", "a='b c'", 'x="it\'s"', "k=ä", "t=$(id); rm *"]
    save(command=command_line(words))
    found = read([tmp_path / "one"])
    assert found.problems == []
    assert found.rows[0].command == command_line(words)


def test_numbers_that_would_overflow_are_refused(tmp_path: Path, save: Save) -> None:
    changes: list[dict[str, Any]] = [
        {"seed": 10**400},
        {"models__student__params": 10**40},
        {"gap_closed": 1e300},
        {"scores__student__test": {"accuracy": 1e300}},
        {"scores__student__test": {"accuracy": 0.5, "ece": -1e300}},
        {"scores__student__test": {"accuracy": None, "a": 1e300, "ece": None}},
    ]
    bad = {str(c)[:80]: save(name=f"r{i}", **{"seed": i, **c}) for i, c in enumerate(changes)}
    for reason in refused(tmp_path / "one", bad).values():
        assert "out of range" in reason


@pytest.mark.parametrize("where", ["terms__task__first", "scores__peer"])
def test_a_number_beyond_every_number_is_refused(tmp_path: Path, save: Save, where: str) -> None:
    number = {"test": {"accuracy": 0.5, "ece": 7.77e77}} if where == "scores__peer" else 7.77e77
    path = save(**{where: number})
    data = json.loads(path.read_text().replace("7.77e+77", "Infinity"))
    data["content_hash"] = content_hash(Record.model_validate(data))  # the hash of what would be null
    path.write_text(json.dumps(data).replace("Infinity", "1e999"))
    assert "not valid JSON (1e999 is beyond every number)" in only(read([tmp_path / "one"]))


# ---- duplicates, folders --------------------------------------------------------------------------------------


def test_the_same_run_twice_is_a_problem_in_one_folder_and_a_copy_in_two(tmp_path: Path, save: Save) -> None:
    first = save(name="a")
    second = save(name="b")
    found = read([tmp_path / "one"])
    assert [row.path for row in found.rows] == [str(first)]
    assert found.problems == [Problem(str(second), f"the same run as {first}: remove one of them")]
    second.unlink()
    save(root=tmp_path / "two")
    found = read([tmp_path / "one", tmp_path / "two"])
    assert ([row.path for row in found.rows], found.problems, found.copies) == ([str(first)], [], 1)


def test_a_folder_given_twice_or_within_another_counts_once(results: Path) -> None:
    found = read([results, results, results / "pointcloud"])
    assert (len(found.rows), found.problems, found.copies) == (60, [], 0)


def test_a_run_folder_a_file_and_a_folder_without_records(results: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    path = Path(read([results]).rows[0].path)
    found = read([path, path.parent, tmp_path / "empty"])
    assert [row.path for row in found.rows] == [str(path)]
    assert found.empty == (tmp_path / "empty",)


def test_links_are_followed_once(results: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (results / "pointcloud").rename(outside)
    (results / "pointcloud").symlink_to(outside)
    (outside / "up").symlink_to(results)
    (outside / "across").symlink_to(results / "classification")
    (results / "again").symlink_to(outside)
    (results / "itself").symlink_to(results / "itself")
    lone = outside / "kd" / "lone"
    lone.mkdir()
    (lone / "run.json").symlink_to(lone / "run.json")
    found = read([results])
    assert (len(found.rows), found.problems) == (60, [])


def test_a_thousand_nested_folders_are_read(tmp_path: Path, save: Save) -> None:
    record = save(root=tmp_path / "elsewhere").read_bytes()
    deep = top = tmp_path / "top"
    top.mkdir()
    for _ in range(1100):
        deep = deep / "d"
        deep.mkdir()
    try:
        (deep / "run.json").write_bytes(record)
        found = read([top])
    finally:  # pytest's own cleaning up is as deep as the folders, which is too deep
        (deep / "run.json").unlink(missing_ok=True)
        while deep != top:
            deep.rmdir()
            deep = deep.parent
    assert (len(found.rows), found.problems) == (1, [])


def test_a_folder_that_cannot_be_read_is_one_problem(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save()
    locked = tmp_path / "one" / "locked"
    locked.mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        if path == str(locked):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = read([tmp_path / "one"])
    assert len(found.rows) == 1
    reason = "cannot be read (Permission denied): what is below it is not shown"
    assert found.problems == [Problem(str(locked), reason)]


def test_a_record_of_the_future_supersedes_nothing(tmp_path: Path, save: Save) -> None:
    honest = save()
    ahead = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    later = save(name="later", run_id="later", provenance__finished=ahead)
    found = read([tmp_path / "one"])
    assert [row.path for row in found.rows] == [str(honest)]
    (problem,) = found.problems
    assert problem.path == str(later)
    assert problem.reason.startswith("it ends in the future")


def test_what_is_being_written_is_not_read(results: Path) -> None:
    path = next(find(results, []))[0]
    hidden = results / "pointcloud" / "kd" / ".run.123.tmp"
    hidden.mkdir(parents=True)
    (hidden / "run.json").write_bytes(Path(path).read_bytes())
    assert len(read([results]).rows) == 60


def test_rows_travel_as_plain_values(tmp_path: Path) -> None:
    record = Record.model_validate(make().model_dump() | {"content_hash": "c" * 32})
    intern = Interner()
    row = flatten(record, "here", intern)
    assert len(values_of(row)) == len(FIELDS)
    again = intern.row(values_of(row))
    assert again == row
    assert again.main is row.main
