from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.demos.boring_classes import BoringModel
from PIL import Image

from kdbench.errors import KDBenchError
from kdbench.loggers import STEP, RunInfo, make_loggers, open_loggers, publish
from tests.wandb_server import OfflineRun, read_offline, serve

RUN = RunInfo(
    task="toy",
    method="kd",
    pair="small",
    seed=3,
    stage="student",
    spec_hash="abc123",
    run_id="r1",
    config={"task": {"name": "toy"}, "lr": [0.1, 0.2]},
    tags=("toy", "kd", "protocol-1"),
    directions={"val/acc": True, "val/loss": False},
)
ONLINE = {"name": "wandb", "project": "p", "entity": None, "mode": "online"}
OFFLINE = ONLINE | {"mode": "offline"}


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without anything of the machine's user, and with nothing left over for the next test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    yield
    wandb.teardown()


def offline_runs(folder: Path) -> dict[str, OfflineRun]:
    wandb.teardown()  # the files are whole when W&B's own process has ended
    runs = [read_offline(path) for path in folder.rglob("*.wandb")]
    return {run.id: run for run in runs}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_three(cfg: dict[str, Any], run: RunInfo, folder: Path) -> None:
    with open_loggers(cfg, run=run, folder=folder) as loggers:
        for step in range(3):
            for logger in loggers:
                logger.log_metrics({"val/acc": 0.5 + 0.1 * step, "val/loss": 1.0 - 0.1 * step}, step=10 * step)


def test_logger_names(tmp_path: Path) -> None:
    assert make_loggers({"name": "none"}, run=RUN, folder=tmp_path) == []
    assert make_loggers({"name": "csv"}, run=RUN, folder=tmp_path) == []
    assert [logger.version for logger in make_loggers(ONLINE, run=RUN, folder=tmp_path)] == ["r1-student"]
    with pytest.raises(KDBenchError, match="did you mean 'wandb'"):
        make_loggers({"name": "wandbb"}, run=RUN, folder=tmp_path)


def test_it_follows_a_lightning_fit(tmp_path: Path) -> None:
    class Model(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("train/loss", torch.tensor(float(batch_idx)))
            return super().training_step(batch, batch_idx)

    with open_loggers(OFFLINE, run=RUN, folder=tmp_path) as loggers:
        trainer = lightning.Trainer(
            logger=loggers,
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
    history = offline_runs(tmp_path)["r1-student"].history
    assert [(row[STEP], row["epoch"], row["train/loss"]) for row in history] == [
        (step, step // 3, step % 3) for step in range(6)
    ]


# --- offline


def test_offline_run_holds_everything(tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    record.write_text("{}")
    picture = tmp_path / "preview.png"
    Image.new("RGB", (8, 8)).save(picture)
    points = np.zeros((5, 3))
    box = {"corners": np.zeros((8, 3)).tolist(), "label": "Car", "color": [0, 255, 0]}
    cloud = {"type": "lidar/beta", "points": points, "boxes": np.array([box]), "vectors": np.array([])}
    with open_loggers(OFFLINE, run=RUN, folder=tmp_path) as loggers:
        for logger in loggers:
            logger.log_metrics({"val/acc": 0.5, "epoch": 0}, step=7)
            logger.log_metrics({"val/acc": 0.25, "epoch": 1}, step=15)
        publish(
            loggers,
            final={"acc": 0.25},
            pictures={"preview": picture},
            media={"scene": lambda wandb: wandb.Object3D(cloud)},
            record=record,
        )
    run = offline_runs(tmp_path)["r1-student"]
    assert (run.name, run.group, run.job_type) == ("toy/kd/small/s3", "abc123", "student")
    assert run.tags == ("toy", "kd", "protocol-1")
    assert run.config["lr"] == [0.1, 0.2]
    assert run.config["spec_hash"] == "abc123"
    assert [(row[STEP], row["val/acc"]) for row in run.history if "val/acc" in row] == [(7, 0.5), (15, 0.25)]
    media = run.history[-1]
    assert media["preview/_type"] == "image-file"
    assert media["scene/_type"] == "object3D-file"
    stored = json.loads(next(tmp_path.rglob("*.pts.json")).read_text())
    assert len(stored["points"]) == 5
    assert stored["boxes"][0]["label"] == "Car"
    assert run.summary["final/acc"] == 0.25
    assert run.metrics["val/acc"].summary.max
    assert run.metrics["val/loss"].summary.min
    assert run.artifacts == {"result-r1": "result"}
    assert run.exit_code == 0


def test_two_runs_in_one_process_are_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with wandb.init(mode="offline", dir=tmp_path, id="mine"):  # a run of the user's own stays what it is
        log_three(OFFLINE, RUN, tmp_path / "a")
        log_three(OFFLINE, replace(RUN, stage="scratch", run_id="r2"), tmp_path / "b")
    runs = offline_runs(tmp_path)
    assert set(runs) == {"mine", "r1-student", "r2-scratch"}
    assert runs["mine"].history == []
    assert len(runs["r1-student"].history) == len(runs["r2-scratch"].history) == 3
    assert "WANDB_MODE" not in os.environ


def test_a_failing_job_ends_its_run_as_failed(tmp_path: Path) -> None:
    def job() -> None:
        with open_loggers(OFFLINE, run=RUN, folder=tmp_path) as loggers:
            for logger in loggers:
                logger.log_metrics({"val/acc": 0.5}, step=0)
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        job()
    assert offline_runs(tmp_path)["r1-student"].exit_code == 1


def test_an_error_of_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise wandb.errors.CommError("server\nis gone")

    with open_loggers(OFFLINE, run=RUN, folder=tmp_path) as loggers:
        for logger in loggers:
            logger.log_metrics({"val/acc": 0.5}, step=0)
        monkeypatch.setattr(type(loggers[0].experiment), "log", broken)
        for step in (1, 2):
            for logger in loggers:
                logger.log_metrics({"val/acc": 0.5}, step=step)
        publish(loggers, media={"bad": lambda wandb: wandb.no_such_thing})
    assert [record.getMessage() for record in caplog.records if record.name == "kdbench.loggers"] == [
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


# --- without a server or a key


def test_unreachable_server_means_offline_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started = time.monotonic()
    log_three(ONLINE, RUN, tmp_path)
    assert time.monotonic() - started < 20  # wandb alone would wait 105 s
    assert len(offline_runs(tmp_path)["r1-student"].history) == 3
    assert "no answer from http://127.0.0.1" in caplog.text


def test_silent_server_costs_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        log_three(ONLINE, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1-student"].history) == 3


def test_no_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        log_three(ONLINE | {"mode": None}, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1-student"].history) == 3
    assert "no API key" in caplog.text
    assert received.runs == {}


def test_a_malformed_key_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "short")
        log_three(ONLINE, RUN, tmp_path)
    assert len(offline_runs(tmp_path)["r1-student"].history) == 3
    assert "AuthenticationError" in caplog.text


# --- online, against the stand-in server


def test_online_run_reaches_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "run.json"
    record.write_text(json.dumps({"status": "ok"}))
    picture = tmp_path / "preview.png"
    Image.new("RGB", (8, 8)).save(picture)
    with serve() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with open_loggers(ONLINE, run=RUN, folder=tmp_path) as loggers:
            for step in range(3):
                for logger in loggers:
                    logger.log_metrics({"val/acc": [0.1, 0.9, 0.3][step]}, step=step)
            publish(loggers, final={"acc": 0.3}, pictures={"preview": picture}, record=record)
        wandb.teardown()
    sent = received.runs["r1-student"]
    assert (sent["displayName"], sent["groupName"], sent["jobType"]) == ("toy/kd/small/s3", "abc123", "student")
    assert set(sent["tags"]) == set(RUN.tags)
    assert json.loads(sent["config"])["task"]["value"] == {"name": "toy"}
    history = [row for row in received.history["r1-student"] if "val/acc" in row]
    assert [(row[STEP], row["val/acc"]) for row in history] == [(0, 0.1), (1, 0.9), (2, 0.3)]
    summary = received.summary["r1-student"]
    assert summary["final/acc"] == 0.3
    assert summary["val/acc"] == {"max": 0.9}
    assert received.exit_codes["r1-student"] == 0
    assert {artifact["artifactTypeName"] for artifact in received.artifacts} >= {"result"}
    assert json.dumps({"status": "ok"}).encode() in received.uploads.values()
    assert any(body.startswith(b"\x89PNG") for body in received.uploads.values())
