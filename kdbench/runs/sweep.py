"""Sweeps: a device for each job, what each job came to, tables at the end, one exit code."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.table import Table

from kdbench.base import endings
from kdbench.base.store import write_atomic
from kdbench.base.terminal import decimals, terminal
from kdbench.configuration.overrides import by_key
from kdbench.errors import KDBenchError
from kdbench.records.record import read_record
from kdbench.records.schema import Record
from kdbench.runs import summary

#: Launchers that start several jobs on this machine and leave all GPUs to each; Slurm and Ray hand out their own.
_LOCAL = ("JoblibLauncher", "LocalLauncher")
COLUMNS: dict[str, dict[str, Any]] = {
    "job": {"overflow": "fold"},
    "status": {"no_wrap": True},
    "score": {"no_wrap": True, "justify": "right"},
    "Δ scratch": {"no_wrap": True, "justify": "right"},
    "": {"overflow": "fold"},
}

#: This process's place in its sweep, held until it ends.
_place: FileLock | None = None


def open_folder(results: str) -> None:
    """Makes the folder of all sweeps.

    Raises:
        KDBenchError: Nothing can be written there.
    """
    folder = Path(results) / ".sweeps"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise KDBenchError(f"results={results}: no record can be written there: {error.strerror}") from None


def objective(record: Path, metric: str) -> float | None:
    """Returns the last score on validation of a run, the value that a sweeper may search by; test is never looked at.

    Args:
        record: The run folder.
        metric: Name of the metric, ``Task.selection``.
    """
    table = record / "metrics.csv"
    if not table.is_file():
        return None
    with table.open(newline="") as stream:
        values = [row[f"val/{metric}"] for row in csv.DictReader(stream) if row.get(f"val/{metric}")]
    return float(values[-1]) if values else None


def gpus() -> list[str]:
    """Lists the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in found.splitlines() if line.startswith("GPU "))]


def _spread(devices: Sequence[str], folder: Path) -> None:
    """Shows this process one GPU, in turn over the processes of a sweep that run at a time.

    By process and not by job number: a joblib worker takes job after job, and CUDA keeps the device of the first.
    """
    global _place
    if _place is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        place = FileLock(folder / f"{number}.lock")
        try:
            place.acquire(timeout=0)
        except Timeout:
            continue
        _place = place
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
        return


# ---- one job --------------------------------------------------------------------------------------------------------


class Job:
    """A job of a sweep, in the process that runs it.

    Args:
        path: Where its outcome goes.
        title: What it alone has: the overrides that vary.
    """

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.title = title

    def note(self, status: str, detail: str, record: Path | None = None) -> None:
        """Leaves the outcome where :func:`conclude` finds it, whatever launched the job."""
        outcome = {"title": self.title, "status": status, "detail": detail, "record": str(record) if record else None}
        write_atomic(self.path, json.dumps(outcome))


#: The job that this process runs, if that is one of a sweep.
job: Job | None = None


# ---- the sweep ------------------------------------------------------------------------------------------------------


class Sweep(Callback):
    """Gives each local job its GPU, and a file for its outcome.

    Args:
        folder: Of this sweep alone, whatever ``hydra.sweep.dir`` and ``hydra.sweep.subdir`` are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.pid = os.getpid()
        self.jobs = self.folder / ".jobs"
        self.devices: list[str] = []
        self.common: frozenset[str] = frozenset()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Counts the GPUs before any job starts; this object then goes to the jobs."""
        global current
        current = self
        if config.hydra.launcher._target_.endswith(_LOCAL):
            self.devices = gpus()
        self.common = frozenset(_fixed(config.hydra.overrides.task))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Chooses the GPU, torch is not imported yet; a job that is killed leaves the outcome noted here."""
        global job
        job = None
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        if os.getpid() != self.pid and config.hydra.launcher._target_.endswith("JoblibLauncher"):
            endings.follow(self.pid)
        if self.devices:
            _spread(self.devices, self.folder / ".places")
        number = config.hydra.job.num
        own = [override for override in config.hydra.overrides.task if override not in self.common]
        job = Job(self.jobs / f"{number}.json", " ".join(by_key(own)) or f"job {number}")
        self.jobs.mkdir(parents=True, exist_ok=True)
        job.note("failed", "no outcome: it was killed, or still runs")


#: The sweep that this process started and has not concluded.
current: Sweep | None = None


def _fixed(overrides: Iterable[str]) -> list[str]:
    """Returns those that are no choice of several, as a sweeper hands them to its jobs."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    return [f"{o.get_key_element()}={o.get_value_element_as_str()}" for o in parsed if not o.is_sweep_override()]


def conclude() -> bool:
    """Prints the tables of the sweep that this process started, if there is one: its jobs, and means over seeds.

    Returns:
        Whether all jobs that started ended well.
    """
    global current, job
    job = None
    if current is None:
        return True
    paths = sorted(current.jobs.glob("*.json"), key=lambda path: int(path.stem))
    current = None
    outcomes = [json.loads(path.read_text()) for path in paths]
    records = {o["record"]: record for o in outcomes if o["record"] and (record := _read(Path(o["record"])))}
    table = Table(title="sweep")
    for column, options in COLUMNS.items():
        table.add_column(column, **options)
    for outcome in outcomes:
        value, gain = _numbers(records.get(outcome["record"]))
        table.add_row(outcome["title"], outcome["status"], value, gain, outcome["detail"])
    console = terminal()
    console.print(table)
    if found := summary.rows((Path(path), record) for path, record in records.items() if record.status == "ok"):
        console.print(summary.table(found, "means with 95% intervals", leave_out=["command"]))
    return all(outcome["status"] == "ok" for outcome in outcomes)


def _read(path: Path) -> Record | None:
    try:
        return read_record(path)
    except KDBenchError:  # on the disk of another machine, or replaced since
        return None


def _numbers(record: Record | None) -> tuple[str, str]:
    if record is None or record.primary is None:
        return "", ""
    value, gain = summary.score(record)
    digits = decimals(value or 1)
    said = "" if gain is None else f"{gain:+.{digits}f}{summary.worse(gain, record.primary.higher_is_better)}"
    return "" if value is None else f"{value:.{digits}f}", said
