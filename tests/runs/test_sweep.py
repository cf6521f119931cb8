"""Sweeps as a user starts them: one training of what jobs share, one table, one exit code."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from kdbench.records.record import find_records, read_record
from kdbench.runs import sweep
from tests.cli import ROOT, CommandLine, install


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys)


def roles(cache: Path) -> Counter[str]:
    return Counter(json.loads(path.read_text())["role"] for path in cache.glob("model/*/manifest.json"))


def folders(results: Path) -> list[Path]:
    return sorted((results / ".sweeps").iterdir())


def command(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python -m kdbench -m`` on the toy task, as a user starts it."""
    site = tmp_path / "site"
    if not (site / "toybox-1.0.dist-info").exists():
        install(site)
    given = ["task=toy", "preset=smoke", "results=results", "cache=cache", *arguments]
    return subprocess.run(
        [sys.executable, "-m", "kdbench", "-m", *given],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_three_jobs_one_after_another(kdbench):
    ran = kdbench("-m", "method=none,kd", "seed=0,1")
    assert ran.code == 0
    assert roles(kdbench.cache) == {"teacher": 1, "student": 4}
    assert ran.out.count("teacher: epoch 1/2") == 1
    assert ran.out.count("scratch: epoch 1/2") == 2
    assert {(r.method, r.seed) for r in kdbench.records()} == {(m, s) for m in ("none", "kd") for s in (0, 1)}
    table = ran.out[ran.out.rindex("sweep") :]
    for record in kdbench.records():
        assert "student" in record.scores
        (row,) = [line for line in table.splitlines() if f"method={record.method} seed={record.seed}" in line]
        assert f"{record.scores['student'].test['accuracy']:.2f}" in row
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


@pytest.mark.parametrize(
    "place",
    [
        ("hydra.sweep.subdir=${hydra.job.override_dirname}",),
        ("hydra.sweep.subdir=${hydra.job.num}_of_${hydra.job.name}", "hydra.sweep.dir={folder}"),
        ("hydra.sweep.subdir=one", "hydra.sweep.dir={folder}"),
    ],
)
def test_a_failed_job_counts_whatever_its_folder_is_called(kdbench, tmp_path, place):
    place = [word.replace("{folder}", str(tmp_path / "own")) for word in place]
    jobs = ("-m", "method=none", "role=student", "student.init_from=null,/nowhere", *place)
    for _ in range(2):
        ran = kdbench(*jobs)
        assert ran.code == 1
        table = ran.out[ran.out.rindex("sweep") :]
        assert (table.count(" ok "), table.count(" failed ")) == (1, 1)


def test_jobs_of_an_earlier_sweep_in_the_same_folder_do_not_count(kdbench, tmp_path):
    where = ("-m", "method=none", "role=student", f"hydra.sweep.dir={tmp_path / 'own'}")
    assert kdbench(*where, "seed=0,1", "student.init_from=/nowhere").code == 1
    ran = kdbench(*where, "seed=0")
    assert ran.code == 0
    assert " failed " not in ran.out[ran.out.rindex("sweep") :]


def test_a_job_that_leaves_by_an_exit_of_its_own_is_no_success(kdbench, monkeypatch):
    from tests.cli import CliToy

    with monkeypatch.context() as patch:
        patch.setattr(CliToy, "prepare", lambda self, progress=True: sys.exit(0))
        assert kdbench("method=none").code == 1
        ran = kdbench("-m", "method=none", "seed=0,1")
    assert ran.code == 1
    assert "no outcome: it was killed" in ran.out


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
    assert all((folder / ".jobs" / "0.json").is_file() for folder in folders(kdbench.results))


@pytest.mark.slow
def test_parallel_jobs_train_what_they_share_once(tmp_path):
    ran = command(tmp_path, "method=none,kd,toy_mixed", "seed=0", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert roles(tmp_path / "cache") == {"teacher": 1, "student": 2}
    assert {read_record(path).method for path in find_records(tmp_path / "results")} == {"none", "kd"}
    assert (ran.stdout + ran.stderr).count("teacher: epoch 1/2") == 1
    table = ran.stdout[ran.stdout.rindex("sweep") :]
    assert (table.count(" ok "), table.count(" failed ")) == (2, 1)
    assert "Mixed requires mixable, which task toy lacks" in " ".join(table.replace("│", " ").split())
    (folder,) = folders(tmp_path / "results")
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [".jobs", "0", "1", "2"]


@pytest.mark.slow
def test_jobs_of_submitit(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    ran = command(tmp_path, "method=none,kd,toy_mixed", "hydra/launcher=submitit_local")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert roles(tmp_path / "cache") == {"teacher": 1, "student": 2}
    table = ran.stdout[ran.stdout.rindex("sweep") :]
    assert (table.count(" ok "), table.count(" failed ")) == (2, 1)
    (folder,) = folders(tmp_path / "results")
    assert len(list((folder / ".submitit").glob("*/*_result.pkl"))) == 3
    again = command(tmp_path, "method=none,kd", "hydra/launcher=submitit_local")
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(find_records(tmp_path / "results")) == 2


# ---- again ----------------------------------------------------------------------------------------------------


def test_a_restarted_sweep_runs_what_has_no_valid_record(kdbench):
    def trained() -> dict[int, datetime]:
        return {r.seed: r.provenance.started for r in kdbench.records()}

    sweep = ("-m", "method=kd", "seed=0,1,2")
    assert kdbench(*sweep).code == 0
    before = trained()
    run = next(path for path in find_records(kdbench.results) if read_record(path).seed == 1)
    (run / "run.json").unlink()
    again = kdbench(*sweep)
    assert again.code == 0
    assert again.out.count("This run has its record") == 2
    after = trained()
    assert {seed for seed in after if after[seed] != before[seed]} == {1}
    assert kdbench(*sweep, "rerun=true").code == 0
    assert all(started > after[seed] for seed, started in trained().items())


def test_a_failed_run_is_run_again(kdbench):
    kdbench("-m", "method=kd", "data.fault=loss,null")
    assert sorted(record.status for record in kdbench.records()) == ["failed", "ok"]
    again = kdbench("-m", "method=kd", "data.fault=loss,null")
    assert again.out.count("This run has its record") == 1
    assert again.out.count("ZeroDivisionError: a bug") >= 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local",)])
def test_a_killed_worker_ends_with_the_table(tmp_path, launcher):
    """A job that the system kills takes joblib's others with it; the table says so and the next start goes on."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "killer.py").write_text(
        "import os, signal\nfrom tests.cli import CliToy\n"
        "class Killer(CliToy):\n"
        "    def prepare(self, progress=True):\n"
        "        if self.options.fault == 'data': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    name, *options = launcher
    jobs = ("task._target_=killer.Killer", "method=none", "data.fault=null,data", f"hydra/launcher={name}")
    ran = command(tmp_path, *jobs, *options, "hydra.sweep.subdir=run_${hydra.job.num}")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    table = ran.stdout[ran.stdout.rindex("sweep") :]
    assert "data.fault=data │ failed" in table
    assert "no outcome: it was killed" in table


# ---- devices --------------------------------------------------------------------------------------------------


def test_gpus_are_counted_without_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert sweep.gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert sweep.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: H200 (UUID: a)'\necho '  MIG 1g'\necho 'GPU 1: H200 (UUID: b)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sweep.gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert sweep.gpus() == []
    tool.unlink()
    assert sweep.gpus() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [("joblib", "hydra.launcher.n_jobs=2"), ("submitit_local", "hydra.launcher.timeout_min=5")]
)
def test_jobs_that_run_at_a_time_see_a_gpu_each(tmp_path, launcher):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "watch.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom tests.cli import CliToy\n"
        f"seen, late = Path({str(tmp_path / 'seen')!r}), time.monotonic() + 120\n"
        "class Watch(CliToy):\n"
        "    def prepare(self, progress=True):\n"
        "        with seen.open('a') as file: file.write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n')\n"
        "        while seen.read_text().count('\\n') < 2 and time.monotonic() < late: time.sleep(0.05)\n"
    )
    name, option = launcher
    arguments = ("task._target_=watch.Watch", "method=none", "seed=0,1", f"hydra/launcher={name}", option)
    ran = command(tmp_path, *arguments, "trainer.accelerator=cpu", CUDA_VISIBLE_DEVICES="6,7")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert sorted((tmp_path / "seen").read_text().split()) == ["6", "7"]


# ---- searches -------------------------------------------------------------------------------------------------


def test_the_value_that_a_search_sees_is_the_last_on_validation(kdbench, tmp_path):
    kdbench("method=kd")
    (path,) = find_records(kdbench.results)
    with (path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sweep.objective(path, "accuracy") == float(rows[-1]["val/accuracy"])
    assert sweep.objective(path, "other") is None
    assert sweep.objective(tmp_path, "accuracy") is None
