"""Past records on their way to W&B, against the stand-in server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from kdbench.mirror.wandb_logger import open_logger
from kdbench.wandb_sync import main as sync
from tests.wandb_server import RUN, Received, assert_whole, closed_port, logged_in, made, no_account


@pytest.fixture(autouse=True)
def _account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with no_account(tmp_path, monkeypatch):
        yield


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Received]:
    with logged_in(monkeypatch) as received:
        yield received


def test_past_records_are_pushed_once(
    tmp_path: Path, server: Received, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, path = made(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")  # as for the training
    before = sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file() and "results" in p.parts)
    assert sync([str(tmp_path / "results")]) == 0
    assert_whole(server, record, path)
    said = capsys.readouterr().out.splitlines()
    assert said[-2].startswith(f"pushed         {path}  http://")
    assert said[-1] == "1 pushed, 0 there already"
    assert sync([str(path)]) == 0
    assert_whole(server, record, path)
    assert capsys.readouterr().out.splitlines() == [f"there already  {path}", "0 pushed, 1 there already"]
    assert before == sorted((p, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file() and "results" in p.parts)


def test_a_mirror_that_broke_off_is_completed(tmp_path: Path, server: Received) -> None:
    with open_logger({"name": "wandb", "mode": "online"}, run=RUN, folder=tmp_path) as logger:
        logger.log_metrics({"val/acc": 0.1}, step=4)
    wandb.teardown()
    record, path = made(tmp_path)
    assert sync([str(path)]) == 0
    assert_whole(server, record, path)


def test_failed_records_are_pushed_as_failed_and_bad_ones_are_named(
    tmp_path: Path, server: Received, capsys: pytest.CaptureFixture[str]
) -> None:
    record, path = made(tmp_path, status="failed", reason="OSError: no", scores={}, gap_closed=None)
    _, edited = made(tmp_path, run_id="r2")
    (edited / "run.json").write_text((edited / "run.json").read_text().replace("0.25", "0.99"))
    _, bare = made(tmp_path, run_id="r3")
    (bare / "config.yaml").write_text("task: 3")
    assert sync([str(tmp_path / "results")]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "1 pushed, 0 there already, 2 not pushed"
    errors = [line for line in said.err.splitlines() if line.startswith("kdbench: error: ")]
    assert len(errors) == 2
    assert "it was edited" in errors[0]
    assert "config.yaml: not the configuration of a run" in errors[1]
    assert list(server.runs) == ["r1"]
    assert server.exit_codes == {"r1": 1}
    assert server.summary["r1"]["reason"] == "OSError: no"


def test_a_dead_server_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert sync([str(tmp_path / "results")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kdbench: error: no answer from http://127.0.0.1")
    assert line.endswith("0 pushed, 0 there already; the records are as they were")
    assert sync([str(tmp_path / "nowhere")]) == 1
    assert "no records there" in capsys.readouterr().err
