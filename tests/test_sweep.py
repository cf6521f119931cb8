"""Sweeps as a user starts them: one training of what jobs share, one table, one exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from kdbench.record import find_records, read_record
from tests.cli import ROOT, CommandLine, install


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def roles(cache: Path) -> Counter[str]:
    return Counter(json.loads(path.read_text())["role"] for path in cache.glob("model/*/manifest.json"))


def folders(results: Path) -> list[Path]:
    return sorted((results / ".sweeps").iterdir())


def test_three_jobs_one_after_another(kdbench):
    ran = kdbench("-m", "method=none,kd", "seed=0,1")
    assert ran.code == 0
    assert roles(kdbench.cache) == {"teacher": 1, "student": 4}
    assert ran.out.count("teacher: epoch 1/2") == 1
    assert ran.out.count("scratch: epoch 1/2") == 2
    assert {(r.method, r.seed) for r in kdbench.records()} == {(m, s) for m in ("none", "kd") for s in (0, 1)}
    table = ran.out[ran.out.rindex("sweep") :]
    for record in kdbench.records():
        assert record.scores.student is not None
        (row,) = [line for line in table.splitlines() if f"method={record.method} seed={record.seed}" in line]
        assert f"{record.scores.student.test['accuracy']:.2f}" in row
        assert " ok " in row


def test_a_failing_job_does_not_stop_the_others(kdbench, monkeypatch):
    from tests.cli import CliToy

    ran = kdbench("-m", "method=kd", "student.init_from=null,/nowhere", "seed=0,1")
    assert ran.code == 1
    assert len(kdbench.records()) == 2
    table = ran.out[ran.out.rindex("sweep") :]
    assert table.count(" ok ") == 2
    assert table.count(" failed ") == 2
    assert ran.err.count("kdbench: error: ") == ran.err.count("\n") == 2

    def prepare(self: CliToy, progress: bool = True) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patch:  # where there is no record yet that could hold it
        patch.setattr(CliToy, "prepare", prepare)
        ran = kdbench("-m", "method=kd", "seed=2,3")
    assert ran.code == 1
    assert ran.out[ran.out.rindex("sweep") :].count("ZeroDivisionError: a bug") == 2
    assert kdbench("-m", "method=kd", "seed=0,1").code == 0


def test_a_diverging_job_has_its_row_and_its_record(kdbench):
    ran = kdbench("-m", "method=kd", "student.trainer.optimizer.lr=0.1,1e38")
    assert ran.code == 1
    assert sorted(record.status for record in kdbench.records()) == ["diverged", "ok"]
    table = ran.out[ran.out.rindex("sweep") :]
    assert (table.count(" ok "), table.count(" diverged ")) == (1, 1)


def test_folders_of_sweeps_are_their_own(kdbench, monkeypatch):
    """Also where two start in one second."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2024, 1, 1)

    monkeypatch.setattr("hydra.core.utils.datetime", Clock)
    for _ in range(2):
        assert kdbench("-m", "method=none", "role=teacher").code == 0
    assert [folder.name[:16] for folder in folders(kdbench.results)] == ["20240101-000000-"] * 2
    assert all((folder / "0" / "outcome.json").is_file() for folder in folders(kdbench.results))


@pytest.mark.slow
def test_parallel_jobs_train_what_they_share_once(tmp_path):
    site = install(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    options = ["task=toy", "preset=smoke", "results=results", "cache=cache", "method=none,kd,toy_mixed", "seed=0"]
    ran = subprocess.run(
        [sys.executable, "-m", "kdbench", "-m", *options, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert roles(tmp_path / "cache") == {"teacher": 1, "student": 2}
    assert {read_record(path).method for path in find_records(tmp_path / "results")} == {"none", "kd"}
    assert (ran.stdout + ran.stderr).count("teacher: epoch 1/2") == 1
    table = ran.stdout[ran.stdout.rindex("sweep") :]
    assert (table.count(" ok "), table.count(" failed ")) == (2, 1)
    assert "Mixed requires mixable, which task toy lacks" in " ".join(table.replace("│", " ").split())
    (folder,) = folders(tmp_path / "results")
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["0", "1", "2"]
