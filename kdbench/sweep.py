"""Sweeps: a device for each job, what each job came to, one table at the end, one exit code."""

from __future__ import annotations

import atexit
import csv
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kdbench.cache import write_atomic
from kdbench.errors import KDBenchError

#: Jobs of the last multirun of this process that did not end well.
failed: list[str] = []

#: Launchers that start several jobs on this machine and leave all GPUs to each; Slurm and Ray hand out their own.
_LOCAL = ("JoblibLauncher", "LocalLauncher")
_RESULT = "outcome.json"
FORMATS = (("score", ".2f"), ("gain", "+.2f"))
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


def note(
    status: str, overrides: Sequence[str], detail: str, score: float | None = None, gain: float | None = None
) -> None:
    """Leaves a job's outcome in its sweep folder, where :class:`Summary` finds it whatever launched the job."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {"status": status, "overrides": list(overrides), "detail": detail, "score": score, "gain": gain}
    write_atomic(folder / _RESULT, json.dumps(outcome))


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


class Summary(Callback):
    """Gives each local job its GPU, and prints the table of a sweep's jobs when all have ended or the sweep breaks."""

    def __init__(self) -> None:
        self.devices: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Counts the GPUs before any job starts."""
        if config.hydra.launcher._target_.endswith(_LOCAL):
            self.devices = gpus()
        atexit.register(self.on_multirun_end, config)  # a killed worker or Ctrl-C ends Hydra without its callback

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Chooses the GPU; torch is not imported yet."""
        if self.devices:
            _spread(self.devices, Path(config.hydra.sweep.dir) / ".places")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collects the outcomes of the jobs; a job without one was killed."""
        atexit.unregister(self.on_multirun_end)
        folder = Path(config.hydra.sweep.dir)
        failed.clear()
        jobs = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []
        outcomes = {job.name: _outcome(job) for job in sorted(jobs, key=lambda p: int(p.name))}
        known = [set(outcome["overrides"]) for outcome in outcomes.values() if outcome["overrides"]]
        shared = set.intersection(*known) if len(known) > 1 else set()
        table = Table(title="sweep")
        for column, options in COLUMNS.items():
            table.add_column(column, **options)
        for name, outcome in outcomes.items():
            title = " ".join(o for o in outcome["overrides"] if o not in shared) or f"job {name}"
            if outcome["status"] != "ok":
                failed.append(title)
            score, gain = (format(outcome[k], form) if outcome[k] is not None else "" for k, form in FORMATS)
            table.add_row(title, outcome["status"], score, gain, outcome["detail"])
        Console(width=None if os.isatty(1) else 140).print(table)


def _outcome(job: Path) -> dict[str, Any]:
    path = job / _RESULT
    if path.is_file():
        return dict(json.loads(path.read_text()))
    return {"status": "failed", "overrides": [], "detail": "ended without an outcome", "score": None, "gain": None}
