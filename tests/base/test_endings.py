"""Processes that are ended from outside: signals to the group, and parents that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kdbench.base import endings
from tests.cli import ROOT, install

#: The toy task whose loaders have workers, and whose epochs take a while.
WORKERS = """
import time
from kdbench.data import SeededLoader
from tests import toy
from tests.cli import CliToy

class Slow(toy.Patterns):
    def __getitem__(self, key):
        time.sleep(0.02)
        return super().__getitem__(key)

class Data(toy.Data):
    def _loader(self, split, size):
        train = split in ("train", "meta")
        return SeededLoader(Slow(size, split), 16, self.seed, toy.collate, train=train, workers=2)

class Toy(CliToy):
    def data(self, seed):
        return Data(seed)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts kdbench in a process group of its own."""
    (folder / "workers.py").write_text(WORKERS)
    given = ["task=toy", "preset=smoke", "cache=cache", "task._target_=workers.Toy", "trainer.epochs=1000", *arguments]
    site = folder / "site" if (folder / "site").exists() else install(folder / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(site), str(ROOT)])}
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench", *given],
        cwd=folder,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=(folder / "out").open("w"),
        stderr=(folder / "err").open("w"),
        text=True,
        start_new_session=True,
    )


def wait(condition: Callable[[], bool], seconds: float = 120) -> None:
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.05)


def children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "sweep"),
    [
        (signal.SIGTERM, ()),
        (signal.SIGINT, ("-m", "seed=0,1")),
        (signal.SIGINT, ("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    ],
)
def test_a_signal_to_the_group_is_one_line_and_no_record(tmp_path, number, sweep):
    run = start(tmp_path, "method=none", "role=student", *sweep)
    wait(lambda: "epoch 2/1000" in (tmp_path / "out").read_text())
    workers = children(run.pid)
    assert len(workers) >= 2
    os.killpg(run.pid, number)
    assert run.wait(30) == 128 + number
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    assert (tmp_path / "err").read_text() == f"kdbench: {word}: the same command continues\n"
    assert "Traceback" not in (tmp_path / "out").read_text()
    assert not list(tmp_path.rglob("run.json"))
    wait(lambda: gone(workers), 10)


@pytest.mark.slow
def test_workers_of_joblib_and_their_loaders_end_with_the_sweep(tmp_path):
    jobs = ("method=none", "role=student", "seed=0,1,2,3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    sweep = start(tmp_path, "-m", *jobs)
    wait(lambda: (tmp_path / "out").read_text().count("epoch 2/1000") == 2)
    workers = children(sweep.pid)
    assert len(workers) >= 2 + 2 * 2
    sweep.kill()
    sweep.wait()
    wait(lambda: gone(workers), 10)


def test_a_child_ends_with_its_parent(tmp_path):
    """Whatever it is doing, and also where it is not told by the system."""
    for platform in ("linux", "other"):
        code = (
            "import os, sys, time; from kdbench.base import endings; "
            f"sys.platform = {platform!r}; endings.follow(int(sys.argv[1])); "
            "print(os.getpid(), flush=True); time.sleep(60)"
        )
        parent = (
            "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).wait()"
        )
        process = subprocess.Popen([sys.executable, "-c", parent, code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
        wait(lambda child=child: gone([child]), 10)  # type: ignore[misc]


def test_an_error_after_a_signal_is_its_consequence():
    with endings.signals():
        with pytest.raises(endings.Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            endings.check()
    assert ended.value.code == 128 + signal.SIGTERM
    assert endings.received() == signal.SIGTERM
    with endings.signals():
        endings.check()
    assert endings.received() is None


def test_the_same_signal_twice_ends_no_clean_up():
    """``timeout`` sends it to the process and to its group."""
    with endings.signals():
        with pytest.raises(endings.Ended):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
