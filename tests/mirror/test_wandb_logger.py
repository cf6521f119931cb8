from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.demos.boring_classes import BoringModel

from kdbench.mirror.wandb_logger import open_logger
from kdbench.mirror.wandb_run import CONTENT, STEP, RunInfo, teacher_hash
from kdbench.records.schema import Record
from kdbench.wandb_sync import main as sync
from tests.wandb_server import (
    CONFIG,
    RUN,
    OfflineRun,
    Received,
    assert_whole,
    closed_port,
    logged_in,
    made,
    no_account,
    read_offline,
    serve,
)

ONLINE = {"name": "wandb", "project": "p", "entity": None, "mode": "online"}
OFFLINE = ONLINE | {"mode": "offline"}


@pytest.fixture(autouse=True)
def _account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with no_account(tmp_path, monkeypatch):
        yield


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    wandb.teardown()  # the files are whole when W&B's own process has ended
    runs = [read_offline(path) for path in folder.rglob("*.wandb")]
    return {run.id: run for run in runs}


def log_three(cfg: dict[str, Any], run: RunInfo, folder: Path) -> None:
    with open_logger(cfg, run=run, folder=folder) as logger:
        for step in range(3):
            logger.log_metrics({"val/acc": 0.5 + 0.1 * step, "val/loss": 1.0 - 0.1 * step}, step=10 * step)


def test_it_follows_a_lightning_fit(tmp_path: Path) -> None:
    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train/loss", torch.tensor(float(batch_idx)))
            return super().training_step(batch, batch_idx)

    with open_logger(OFFLINE, run=RUN, folder=tmp_path) as logger:
        trainer = lightning.Trainer(
            logger=logger,
            max_epochs=2,
            limit_train_batches=3,
            limit_val_batches=0,
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        )
        trainer.fit(Model())
    history = offline_runs(tmp_path)["r1"].history
    assert [(row[STEP], row["epoch"], row["train/loss"]) for row in history] == [
        (step, step // 3, step % 3) for step in range(6)
    ]


# --- offline


def test_offline_run_holds_everything(tmp_path: Path) -> None:
    record, folder = made(tmp_path)
    points = np.zeros((5, 3))
    box = {"corners": np.zeros((8, 3)).tolist(), "label": "Car", "color": [0, 255, 0]}
    cloud = {"type": "lidar/beta", "points": points, "boxes": np.array([box]), "vectors": np.array([])}
    with open_logger(OFFLINE, run=RUN, folder=tmp_path) as logger:
        logger.log_metrics({"val/acc": 0.5, "epoch": 0}, step=7)
        logger.log_metrics({"val/acc": 0.25, "epoch": 1}, step=15)
        logger.publish(record, folder, {"scene": lambda wandb: wandb.Object3D(cloud)})
    run = offline_runs(tmp_path)["r1"]
    assert (run.name, run.group, run.job_type) == ("toy/kd/small/s3", "abc123", "distill")
    assert run.tags == ("toy", "kd", "smoke", "protocol-1")
    assert run.config["factors"] == [0.1, 0.2]
    assert run.config["spec_hash"] == "abc123"
    assert run.config["teacher_hash"] == teacher_hash(CONFIG)
    assert [(row[STEP], row["val/acc"]) for row in run.history if "val/acc" in row] == [(7, 0.5), (15, 0.25)]
    media = run.history[-1]
    assert media["preview/_type"] == "image-file"
    assert media["scene/_type"] == "object3D-file"
    stored = json.loads(next(tmp_path.rglob("*.pts.json")).read_text())
    assert len(stored["points"]) == 5
    assert stored["boxes"][0]["label"] == "Car"
    assert media["scores/_type"] == media["by_class/_type"] == "table-file"
    assert run.summary["final/acc"] == run.summary["final/student/acc"] == 0.25
    assert (run.summary["final/teacher/acc"], run.summary["final/scratch/acc"]) == (0.75, 0.125)
    assert run.summary["gap_closed"] == 0.2
    assert run.summary[CONTENT] == record.content_hash
    assert run.metrics["val/acc"].summary.max
    assert run.metrics["val/loss"].summary.min
    assert run.artifacts["result-r1"] == "result"
    assert run.exit_code == 0
    (table,) = tmp_path.rglob("by_class*.table.json")
    rows = json.loads(table.read_text())
    assert rows["columns"] == ["class", "role", "ap"]
    assert rows["data"] == [["Car", "student", 0.5], ["Cyclist", "student", 0.125]]
    (table,) = tmp_path.rglob("scores*.table.json")
    assert ["acc", 0.75, 0.125, 0.25] in json.loads(table.read_text())["data"]


def test_job_types_and_what_shares_a_teacher() -> None:
    none = {"name": "none"}
    assert RunInfo.of(CONFIG | {"method": none}, run_id="r", spec_hash="s").job_type == "scratch"
    assert RunInfo.of(CONFIG | {"method": none, "role": "teacher"}, run_id="r", spec_hash="s").job_type == "teacher"
    same = {"method": none, "seed": 9, "data": {"name": "toy", "root": "/there"}}
    assert teacher_hash(CONFIG | same) == teacher_hash(CONFIG)
    for change in (
        {"data": {"name": "other"}},
        {"teacher": CONFIG["teacher"] | {"seed": 1}},
        {"teacher": CONFIG["teacher"] | {"trainer": {"epochs": 4}}},
        {"pair": {"name": "small", "teacher": {"architecture": {"width": 9}}}},
    ):
        assert teacher_hash(CONFIG | change) != teacher_hash(CONFIG)


def test_two_runs_in_one_process_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with wandb.init(mode="offline", dir=tmp_path, id="mine"):  # a run of the user's own stays what it is
        log_three(OFFLINE, RUN, tmp_path / "a")
        log_three(OFFLINE, replace(RUN, run_id="r2"), tmp_path / "b")
    runs = offline_runs(tmp_path)
    assert set(runs) == {"mine", "r1", "r2"}
    assert runs["mine"].history == []
    assert len(runs["r1"].history) == len(runs["r2"].history) == 3
    assert "WANDB_MODE" not in os.environ


def test_a_failing_job_ends_its_run_as_failed(tmp_path: Path) -> None:
    def job() -> None:
        with open_logger(OFFLINE, run=RUN, folder=tmp_path) as logger:
            logger.log_metrics({"val/acc": 0.5}, step=0)
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        job()
    assert offline_runs(tmp_path)["r1"].exit_code == 1


def test_an_error_of_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise wandb.errors.CommError("server\nis gone")

    with open_logger(OFFLINE, run=RUN, folder=tmp_path) as logger:
        logger.log_metrics({"val/acc": 0.5}, step=0)
        monkeypatch.setattr(type(logger.experiment), "log", broken)
        for step in (1, 2):
            logger.log_metrics({"val/acc": 0.5}, step=step)
        logger.publish(*made(tmp_path), {"bad": lambda wandb: wandb.no_such_thing})
    assert [record.getMessage() for record in caplog.records if record.name == "kdbench.mirror.wandb_logger"] == [
        "W&B: CommError: server is gone; metrics.csv and the run record are complete without it"
    ]


def test_a_run_that_wandb_cannot_open_is_tried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    modes = []
    init = wandb.init

    def failing(**kwargs: Any) -> Any:
        modes.append(kwargs["mode"])
        if kwargs["mode"] == "disabled":
            return init(**kwargs)
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", failing)
    log_three(OFFLINE, RUN, tmp_path)
    assert modes == ["offline", "disabled"]
    assert "OSError: disk full" in caplog.text


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_folder_that_cannot_be_written_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: str
) -> None:
    (tmp_path / "file").write_text("")
    log_three({**OFFLINE, "mode": mode}, RUN, tmp_path / "file" / "wandb")
    assert len([r for r in caplog.records if r.name == "kdbench.mirror.wandb_logger"]) == (mode == "offline")


def test_a_run_that_wandb_cannot_open_at_all_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where Lightning asks for the experiment itself, before anything is logged."""

    def failing(**kwargs: Any) -> Any:
        raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", failing)
    with open_logger(OFFLINE, run=RUN, folder=tmp_path) as logger:
        assert logger.experiment is None
        logger.log_metrics({"train/loss": 1.0}, 1)
        logger.publish(*made(tmp_path))
    assert len([r for r in caplog.records if r.name == "kdbench.mirror.wandb_logger"]) == 1


# --- without a server or a key


def test_unreachable_server_means_offline_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started = time.monotonic()
    log_three(ONLINE, RUN, tmp_path)
    assert time.monotonic() - started < 20  # wandb alone would wait 105 s
    assert len(offline_runs(tmp_path)["r1"].history) == 3
    assert "no answer from http://127.0.0.1" in caplog.text


def test_silent_server_costs_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        log_three(ONLINE, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1"].history) == 3


def test_no_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        log_three(ONLINE, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1"].history) == 3
    assert "no API key" in caplog.text
    assert received.runs == {}


def test_a_malformed_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "short")
        log_three(ONLINE, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1"].history) == 3
    assert "AuthenticationError" in caplog.text


# --- online, against the stand-in server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with logged_in(monkeypatch) as received:
        yield received


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def follow(cfg: dict[str, Any], record: Record, path: Path, folder: Path) -> None:
    """What a run does with its logger."""
    with open_logger(cfg, run=RUN, folder=folder) as logger:
        for step, value in ((4, 0.1), (8, 0.9), (12, 0.3)):
            logger.log_metrics({"val/acc": value}, step=step)
        logger.publish(record, path)


def test_online_run_reaches_the_server(tmp_path: Path, server: Received) -> None:
    record, path = made(tmp_path)
    follow(ONLINE, record, path, tmp_path)
    assert_whole(server, record, path)


def test_offline_is_the_default_and_wandb_sync_uploads_it(tmp_path: Path, server: Received) -> None:
    record, path = made(tmp_path)
    follow(ONLINE | {"mode": None}, record, path, tmp_path)
    wandb.teardown()
    assert server.runs == {}
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes", str(folder)], check=True, timeout=120, cwd=tmp_path)
    assert_whole(server, record, path)
    assert sync([str(tmp_path / "results")]) == 0  # and there is nothing left to push
    assert_whole(server, record, path)


@pytest.mark.slow  # W&B's own client asks for half a minute
def test_a_server_that_dies_during_a_run_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kdbench.mirror.wandb_run.FINISH_S", 3)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    record, path = made(tmp_path)
    before = (path / "run.json").read_bytes()
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        with open_logger(ONLINE, run=RUN, folder=tmp_path) as logger:
            logger.log_metrics({"val/acc": 0.1}, step=4)
            wait_for(lambda: "r1" in received.runs)
            received.closed.set()
            start = time.monotonic()
            logger.log_metrics({"val/acc": 0.9}, step=8)
            logger.log_metrics({"val/acc": 0.3}, step=12)
            logger.publish(record, path)
    assert time.monotonic() - start < 60
    assert [
        r.message.endswith("complete without it") for r in caplog.records if r.name == "kdbench.mirror.wandb_logger"
    ] == [True]
    wandb.teardown()
    assert (path / "run.json").read_bytes() == before
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert sync([str(path)]) == 0
        assert_whole(received, record, path)
        wandb.teardown()
