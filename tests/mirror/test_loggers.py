"""Loggers of Lightning's beside a run: what they get, and what they cannot break."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from kdbench.configuration import config
from tests.cli import CommandLine
from tests.toy import training


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def logged(kdbench: CommandLine) -> list[dict[str, str]]:
    (table,) = (kdbench.results / ".own" / "toy").glob("*/metrics.csv")
    with table.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("cached", [False, True])
def test_a_logger_gets_every_epoch_the_configuration_and_the_final_scores(kdbench, cached):
    if cached:
        assert kdbench("method=kd", f"results={kdbench.results}2").code == 0
    assert kdbench("method=kd", "logger=toy_csv").code == 0
    rows = logged(kdbench)
    (record,) = kdbench.records()
    assert [float(row["epoch"]) for row in rows if row["val/accuracy"]] == [0, 1]
    assert "student" in record.scores
    assert float(rows[-1]["final/accuracy"]) == pytest.approx(record.scores["student"].test["accuracy"])
    (about,) = (kdbench.results / ".own" / "toy").glob("*/hparams.yaml")
    assert "temperature" in about.read_text()
    assert about.parent.name == record.run_id


@pytest.mark.parametrize("broken", ["log_metrics", "save", "finalize", "log_hyperparams", "__init__"])
def test_a_logger_that_fails_is_one_warning(kdbench, monkeypatch, caplog, broken):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full\nor so")

    monkeypatch.setattr(CSVLogger, broken, fail)
    assert kdbench("method=none", "role=student", "logger=toy_csv").code == 0
    (said,) = [r.getMessage() for r in caplog.records if r.name == "kdbench.mirror.loggers"]
    assert said.startswith("logger=toy_csv: ")
    assert said.endswith("metrics.csv and the run record are complete without it")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_package_that_is_not_there_is_one_line(kdbench, monkeypatch, name, module):
    target = config.load(["task=toy", f"logger={name}"])["logger"]["_target_"]
    place, _, of = target.rpartition(".")
    monkeypatch.setattr(
        getattr(sys.modules[place], of), "__init__", lambda *_, **__: (_ for _ in ()).throw(ModuleNotFoundError(module))
    )
    line = kdbench("method=kd", f"logger={name}").error
    assert line.startswith(f"logger={name}: its package is not installed: pip install {module}")
    assert not kdbench.results.exists()


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_the_packages_themselves(kdbench, monkeypatch, caplog, name, module):
    pytest.importorskip(module)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert kdbench("method=kd", f"logger={name}").code == 0
    assert not [r for r in caplog.records if r.name == "kdbench.mirror.loggers"]
    (record,) = kdbench.records()
    assert "student" in record.scores
    final = record.scores["student"].test["accuracy"]
    if name == "tensorboard":
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        (folder,) = kdbench.results.glob(".tensorboard/toy/kd/*")
        events = reader.EventAccumulator(str(folder))
        events.Reload()
        assert len(events.Scalars("val/accuracy")) == 2
        assert events.Scalars("final/accuracy")[0].value == pytest.approx(final)
    else:
        (value,) = kdbench.results.glob(".mlruns/*/*/metrics/final/accuracy")
        assert float(value.read_text().split()[1]) == pytest.approx(final)
        (values,) = kdbench.results.glob(".mlruns/*/*/metrics/val/accuracy")
        assert len(values.read_text().splitlines()) == 2


def test_callbacks_of_lightning_find_the_metrics(tmp_path: Path):
    stop = EarlyStopping(monitor="val/accuracy", mode="max", patience=1, min_delta=2.0)  # nothing improves by that
    keep = ModelCheckpoint(tmp_path / "kept", "{epoch}", monitor="val/accuracy", mode="max", save_top_k=1)
    logger = CSVLogger(tmp_path, name="csv", version="0")
    run = training(tmp_path / "work", "KD", epochs=6)
    manifest = run.run(tmp_path / "work", [stop, keep, LearningRateMonitor("epoch")], [logger])
    assert manifest["cost"]["epochs"] == stop.stopped_epoch + 1 == 2
    assert keep.best_model_score is not None
    assert len(list((tmp_path / "kept").glob("*.ckpt"))) == 1
    logger.save()
    assert "lr-" in (tmp_path / "csv" / "0" / "metrics.csv").read_text().splitlines()[0]
