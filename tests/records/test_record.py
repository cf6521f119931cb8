from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.base.digest import digest, without, without_nulls
from kdbench.errors import KDBenchError
from kdbench.records import record as record_module
from kdbench.records.record import content_hash, find_records, read_record, spec_hash, verify, write_record
from kdbench.records.schema import Record, json_schema

ROOT = Path(__file__).resolve().parents[2]
STARTED = datetime(2024, 5, 1, 12, tzinfo=UTC)


def fields(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "run_id": "kd-0001",
        "spec_hash": "s" * 16,
        "code_digest": "c" * 16,
        "status": "ok",
        "task": "classification",
        "method": "kd",
        "pair": "resnet32x4_resnet8x4",
        "preset": "quick",
        "seed": 0,
        "options": {"temperature": 4, "levels": [1, 2.5]},
        "fidelity": "exact",
        "origin": "measured",
        "command": "python -m kdbench task=classification method=kd",
        "tuning": {"trials": 4, "factor": 0.3, "seed": 1000, "scores": {"0.3": 0.61, "1": 0.6}},
        "dataset": {
            "name": "shapes",
            "embedded": True,
            "digest": "d" * 16,
            "sizes": {"train": 900, "val": 100, "test": 500},
        },
        "primary": {"name": "accuracy", "higher_is_better": True},
        "scores": {
            "teacher": {"test": {"accuracy": 0.8}},
            "scratch": {"test": {"accuracy": 0.6}},
            "student": {"test": {"accuracy": 0.1 + 0.2, "ece": 1 / 3}, "best_on_val": {"accuracy": 0.7}},
        },
        "gap_closed": 0.5,
        "cost": {"epochs": 2, "samples_seen": 1800, "teacher_passes": 1, "student_passes": 1.0, "wall_s": 3.25},
        "models": {
            "teacher": {"params": 100, "macs": 1000, "bytes": 400},
            "student": {"params": 10, "macs": 100, "bytes": 40, "latency_ms": 0.5},
        },
        "terms": {"task": {"weight": 1, "first": 2.0, "last": 0.5}, "kd": {"weight": "ramp(5)"}},
        "provenance": {
            "commit": None,
            "dirty": None,
            "config_digest": "e" * 16,
            "packages": {"torch": "2.0"},
            "hardware": {"cpu": "cpu", "cores": 2, "system": "Linux"},
            "threads": 1,
            "started": STARTED,
            "finished": STARTED + timedelta(minutes=3),
        },
    }
    return base | changes


def make(**changes: Any) -> Record:
    return Record.model_validate(fields(**changes))


def write(results: Path, record: Record | None = None, **options: Any) -> Path:
    return write_record(results, record or make(), {"config.yaml": "seed: 0\n"}, **options)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((folder / "run.json").read_text())
    change(data)
    (folder / "run.json").write_text(json.dumps(data))


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\x00\x01")
    written = make()
    files: dict[str, Path | bytes | str] = {
        "config.yaml": "name: é\n",
        "student.safetensors": tmp_path / "weights",
        "preview.png": b"\x89PNG",
    }
    folder = write_record(tmp_path / "results", written, files)
    assert folder == tmp_path / "results" / "classification" / "kd" / "kd-0001"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, "run.json"])
    assert (folder / "config.yaml").read_text(encoding="utf-8") == "name: é\n"
    assert (folder / "student.safetensors").read_bytes() == b"\x00\x01"
    assert (folder / "preview.png").read_bytes() == b"\x89PNG"
    found = read_record(folder)
    assert found == read_record(folder / "run.json")
    assert found.model_copy(update={"content_hash": None}) == written
    assert found.content_hash == content_hash(written)
    assert find_records(tmp_path / "results") == [folder]
    assert [path.name for path in folder.parent.iterdir()] == ["kd-0001"]


def test_the_file_has_the_fields_of_the_protocol(tmp_path: Path) -> None:
    data = json.loads((write(tmp_path) / "run.json").read_text())
    top = """schema_version protocol run_id spec_hash content_hash code_digest status reason flags
        task method pair augment quant preset seed options fidelity origin command tuning
        dataset primary scores gap_closed gap_reason cost models networks teacher terms files provenance"""
    assert set(data) == set(top.split())
    assert (data["schema_version"], data["protocol"]) == (3, "1")
    assert set(data["scores"]) == {"teacher", "scratch", "student"}
    cost = """epochs samples_seen teacher_passes student_passes teacher_tokens student_tokens wall_s peak_rss_mb
        added_params"""
    assert set(data["cost"]) == set(cost.split())
    origin = "commit dirty config_digest packages hardware threads started finished"
    assert set(data["provenance"]) == set(origin.split())
    assert data["provenance"]["started"] == "2024-05-01T12:00:00Z"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"extra": 1}, "extra"),
        ({"status": "done"}, "status"),
        ({"status": "failed"}, "needs a reason"),
        ({"scores": {"student": {"test": {"f1": 1.0}}}}, r"scores\.student\.test lacks the primary metric 'accuracy'"),
        ({"scores": {}}, "at least one role"),
        ({"cost": None}, "needs dataset, primary and cost"),
        ({"gap_closed": None}, "gap_reason must say why"),
        ({"run_id": "../up"}, "run_id"),
        ({"task": "a/b"}, "task"),
        ({"method": ""}, "method"),
    ],
)
def test_an_incomplete_record_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make(**changes)


def test_a_failed_run_may_lack_what_it_did_not_reach(tmp_path: Path) -> None:
    kept = fields(status="failed", reason="no such tap")
    for name in ("dataset", "primary", "scores", "gap_closed", "cost", "models", "terms", "tuning"):
        del kept[name]
    assert read_record(write(tmp_path, Record.model_validate(kept))).reason == "no such tap"


def test_values_that_are_not_finite_become_null_and_a_flag(tmp_path: Path) -> None:
    record = make(
        flags=["no_headroom"],
        scores={"student": {"test": {"accuracy": 0.5, "ece": math.nan}}},
        terms={"kd": {"weight": 1.0, "first": 2.0, "last": math.inf}},
    )
    folder = write(tmp_path, record)
    found = read_record(folder)
    assert found.flags == ["no_headroom", "nan:scores.student.test.ece", "nan:terms.kd.last"]
    assert found.scores["student"] is not None
    assert found.scores["student"].test == {"accuracy": 0.5, "ece": None}
    assert found.terms["kd"].last is None
    assert found.content_hash == content_hash(record)
    assert record.flags == ["no_headroom"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["scores"]["student"]["test"].update(accuracy=0.31),
        lambda data: data["scores"]["teacher"]["test"].update(accuracy=0.8000000000000002),
        lambda data: data.update(gap_closed=0.6),
        lambda data: data.update(seed=1),
        lambda data: data.update(flags=["x"]),
        lambda data: data["options"].update(temperature=5),
        lambda data: data["cost"].update(epochs=3),
        lambda data: data["provenance"].update(commit="abc"),
        lambda data: data.update(content_hash=None),
    ],
)
def test_an_edited_record_is_noticed(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    folder = write(tmp_path)
    edit(folder, change)
    with pytest.raises(KDBenchError, match=r"run\.json: content_hash is .*edited"):
        read_record(folder)
    assert not verify(read_record(folder, check_hash=False))


def test_the_content_hash_leaves_out_what_differs_between_equal_runs() -> None:
    first = fields()
    other = fields(
        run_id="kd-0002",
        command="python -m kdbench",
        cost=first["cost"] | {"wall_s": 9.0, "peak_rss_mb": 1.0},
        provenance=first["provenance"]
        | {"started": STARTED - timedelta(1), "finished": STARTED, "threads": 4}
        | {"hardware": {"cpu": "another", "cores": 64, "gpu": "gpu", "system": "x"}},
    )
    other["models"] = {**first["models"], "student": first["models"]["student"] | {"latency_ms": 7.0}}
    assert content_hash(make()) == content_hash(Record.model_validate(other))
    assert content_hash(make()) != content_hash(make(method="dkd"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no run record"),
        (b"", "the file is empty"),
        (b'{"schema_version": 1, ', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": 1, "gap_closed": NaN}', "NaN is not JSON"),
        (b'{"schema_version": 1, "gap_closed": -1e999}', "-1e999 is beyond every number"),
        (b"[]", "schema_version is None, expected 3"),
        (b'{"schema_version": 4}', "schema_version is 4, expected 3"),
        (b'{"schema_version": 3}', "Field required"),
    ],
)
def test_an_unreadable_record_is_one_line(tmp_path: Path, text: bytes | None, says: str) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(KDBenchError, match=says) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(KDBenchError):
        read_record(tmp_path / "nowhere")


def test_a_record_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(KDBenchError, match=r"no config\.yaml"):
        write_record(tmp_path, make(), {})
    with pytest.raises(KDBenchError, match=r"cannot be written: .*missing\.png"):
        write_record(tmp_path, make(), {"config.yaml": "", "preview.png": tmp_path / "missing.png"})
    assert find_records(tmp_path) == []
    assert list((tmp_path / "classification" / "kd").iterdir()) == []


@pytest.mark.parametrize("moment", ["config.yaml", "run.json", "rename"])
def test_a_killed_writer_leaves_no_record(tmp_path: Path, moment: str) -> None:
    # The process ends without clean-up, as a killed one does: at one of its files, or when all are written.
    code = """if True:
        import os, sys
        from pathlib import Path
        from tests.records.test_record import make
        from kdbench.base import store as cache
        from kdbench.records import record
        results, moment = Path(sys.argv[1]), sys.argv[2]
        def write(path, data):
            os._exit(9) if path.name == moment else cache.write_atomic(path, data)
        def rename(path, target):
            os._exit(9) if path.is_dir() else os.rename(path, target)
        record.write_atomic, Path.rename = write, rename
        record.write_record(results, make(), {"config.yaml": ""})
    """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), moment], cwd=ROOT, check=False)
    assert done.returncode == 9
    assert find_records(tmp_path) == []
    folder = write(tmp_path)
    assert find_records(tmp_path) == [folder]


def test_an_existing_record_gives_way_only_on_request(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(KDBenchError, match="exists: choose another"):
        write(tmp_path, make(seed=1))
    assert read_record(folder).seed == 0
    assert write(tmp_path, make(seed=1), replace=True) == folder
    assert read_record(folder).seed == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_runs_that_differ_in_the_seed_alone_have_one_spec() -> None:
    config = {
        "seed": 0,
        "results": "a",
        "method": {"name": "kd", "temperature": 4.0},
        "teacher": {"seed": 0},
        "data": {"name": "shapes", "workers": 0},
    }
    base = spec_hash(config)
    assert spec_hash(config | {"seed": 1, "results": "b", "rerun": True, "data": {"name": "shapes"}}) == base
    assert spec_hash(config | {"teacher": {"seed": 1}}) == base  # several teachers are an axis, as seeds are
    assert spec_hash(config | {"teacher": {"seed": 0, "replay": 4}}) != base
    assert spec_hash(config | {"teacher": {"seed": 0, "corpus": {}}}) == base  # as before there were corpora
    assert spec_hash(config | {"teacher": {"seed": 0, "corpus": {"texts": 4}}}) != base
    assert spec_hash(config | {"data": {"name": "other", "workers": 0}}) != base
    own = [
        {"seed": 0, "data": {"labels": n, "root": r, "workers": w}}
        for n, r, w in ((5, "a", 0), (5, "b", 2), (6, "a", 0))
    ]
    here, there, other = (spec_hash(config | {"teacher": teacher}) for teacher in own)
    assert here == there != other
    assert spec_hash(config, exclude=("method.temperature",)) != base
    without = {**config, "method": {"name": "kd"}}
    assert spec_hash(config, exclude=("method.temperature",)) == spec_hash(without, exclude=())


def test_schema_describes_what_is_written(tmp_path: Path) -> None:
    schema = json_schema()
    data = json.loads((write(tmp_path) / "run.json").read_text())
    assert set(schema["properties"]) == set(data)
    assert schema["additionalProperties"] is False
    assert json.loads(json.dumps(schema)) == schema


def test_an_older_record_is_upgraded_and_still_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(data: dict[str, Any]) -> dict[str, Any]:
        return {("pair" if key == "models_of" else key): value for key, value in data.items()}

    old = json.loads(
        make(options={"a": None}, scores={"student": {"test": {"accuracy": 0.5, "ece": None}}}).model_dump_json()
    )
    old["models_of"] = old.pop("pair")
    old["schema_version"] = 0
    plain = without(without_nulls(old, record_module.FREE), record_module.VOLATILE)
    old["content_hash"] = digest(plain, 32)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(old))
    with pytest.raises(KDBenchError, match="schema_version is 0, expected 3"):
        read_record(path)
    monkeypatch.setitem(record_module.UPGRADES, 0, renamed)
    found = read_record(path)
    assert (found.schema_version, found.pair, found.options) == (3, "resnet32x4_resnet8x4", {"a": None})
    assert verify(found)
    path.write_text(json.dumps(old | {"seed": 7}))
    with pytest.raises(KDBenchError, match="edited"):
        read_record(path)
    assert read_record(path, check_hash=False).seed == 7


def test_a_record_of_version_1_is_read_and_verified(tmp_path: Path) -> None:
    """It says nothing of classes and inputs; true for 1 is no version."""
    old = json.loads(make().model_dump_json()) | {"schema_version": 1}
    del old["dataset"]["classes"], old["dataset"]["inputs"]
    plain = without(without_nulls(old, record_module.FREE), record_module.VOLATILE)
    old["content_hash"] = digest(plain, 32)
    path = tmp_path / "run.json"
    text = json.dumps(old)
    path.write_text(text)
    found = read_record(path)
    assert found.dataset is not None
    assert (found.schema_version, found.dataset.name, found.dataset.classes, found.dataset.inputs) == (
        3, "shapes", None, None,
    )  # fmt: skip
    assert verify(found)
    assert path.read_text() == text
    path.write_text(json.dumps(old | {"gap_closed": 0.6}))
    with pytest.raises(KDBenchError, match="edited"):
        read_record(path)
    path.write_text(json.dumps(old | {"schema_version": True}))
    with pytest.raises(KDBenchError, match="schema_version is True, expected 3"):
        read_record(path)


def test_a_record_of_version_2_says_null_of_what_it_has_not(tmp_path: Path) -> None:
    old = json.loads(make().model_dump_json()) | {"schema_version": 2}
    old["scores"] |= {"peer": None, "teacher_privileged": None, "converted": {"test": {"accuracy": 0.2}}}
    old["models"] |= {"converted": {"bytes": 12, "packed_bytes": 9, "latency_ms": 0.3, "engine": "fbgemm"}}
    for name in ("params", "macs"):
        old["models"]["converted"].pop(name, None)
    old["content_hash"] = digest(without(without_nulls(old, record_module.FREE), record_module.VOLATILE), 32)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(old))
    found = read_record(path)
    assert list(found.scores) == ["teacher", "scratch", "student", "converted"]
    assert (found.models["converted"].engine, found.models["converted"].params) == ("fbgemm", None)
    assert verify(found)
    path.write_text(json.dumps(old | {"scores": {**old["scores"], "peer": {"test": {"accuracy": 0.9}}}}))
    with pytest.raises(KDBenchError, match="edited"):
        read_record(path)


def test_upgrades_go_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def step(data: dict[str, Any]) -> dict[str, Any]:
        steps.append(data["schema_version"])
        return data

    for version in (-1, 0):
        monkeypatch.setitem(record_module.UPGRADES, version, step)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(json.loads(make().model_dump_json()) | {"schema_version": -1}))
    assert read_record(path, check_hash=False).schema_version == 3
    assert steps == [-1, 0]


def test_the_hash_of_an_older_record_is_that_of_its_fields() -> None:
    # What a later kdbench computes from the file alone is what this one wrote.
    inputs = fields()["dataset"] | {"classes": ["ant"], "inputs": {"range": None, "size": [8, 8]}}
    record = make(
        options={"a": None},
        scores={"student": {"test": {"accuracy": 0.5, "ece": None}}},
        dataset=inputs,
        networks={"student": {"width": None}},
    )
    raw = json.loads(record.model_dump_json())
    plain = without(without_nulls(raw, record_module.FREE), record_module.VOLATILE)
    assert digest(plain, 32) == content_hash(record)


def test_what_is_nearly_json_takes_no_short_cut(tmp_path: Path) -> None:
    folder = write(tmp_path, make(scores={"student": {"test": {"accuracy": 0.5, "ece": math.nan}}}))
    text = (folder / "run.json").read_text()
    assert '"ece": null' in text
    (folder / "run.json").write_text(text.replace('"ece": null', '"ece": NaN'))
    with pytest.raises(KDBenchError, match="NaN is not JSON"):
        read_record(folder)


def test_a_record_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError("a full disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(KDBenchError, match="a full disk"):
        write(tmp_path, make(seed=1), replace=True)
    assert read_record(folder).seed == 0
    assert not list(folder.parent.glob(".*"))
