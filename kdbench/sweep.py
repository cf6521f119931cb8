"""Sweeps: what each job of a multirun came to, one table at the end, one exit code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from kdbench.cache import write_atomic

#: Jobs of the last multirun of this process that did not end well.
failed: list[str] = []

_RESULT = "outcome.json"


def note(status: str, title: str, detail: str, score: float | None = None, gain: float | None = None) -> None:
    """Leaves a job's outcome in its sweep folder, where :class:`Summary` finds it whatever launched the job."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    folder = Path(HydraConfig.get().runtime.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    outcome = {"status": status, "title": title, "detail": detail, "score": score, "gain": gain}
    write_atomic(folder / _RESULT, json.dumps(outcome))


class Summary(Callback):
    """Prints the table of a sweep's jobs when all have ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collects the outcomes of the jobs; a job without one was killed."""
        folder = Path(config.hydra.sweep.dir)
        failed.clear()
        table = Table(title="sweep")
        for column in ("job", "status", "score", "Δ scratch", ""):
            table.add_column(column)
        jobs = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []
        for job in sorted(jobs, key=lambda p: int(p.name)):
            path = job / _RESULT
            outcome = json.loads(path.read_text()) if path.is_file() else _killed(job.name)
            if outcome["status"] != "ok":
                failed.append(outcome["title"])
            numbers = [f"{outcome[k]:+.2f}" if outcome[k] is not None else "" for k in ("score", "gain")]
            table.add_row(outcome["title"], outcome["status"], numbers[0].lstrip("+"), numbers[1], outcome["detail"])
        Console(width=None if os.isatty(1) else 140).print(table)


def _killed(name: str) -> dict[str, Any]:
    detail = "ended without an outcome"
    return {"status": "failed", "title": f"job {name}", "detail": detail, "score": None, "gain": None}
