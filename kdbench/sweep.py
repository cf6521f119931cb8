"""Sweeps: what each job of a multirun came to, one table at the end, one exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
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
FORMATS = (("score", ".2f"), ("gain", "+.2f"))
COLUMNS: dict[str, dict[str, Any]] = {
    "job": {"overflow": "fold"},
    "status": {"no_wrap": True},
    "score": {"no_wrap": True, "justify": "right"},
    "Δ scratch": {"no_wrap": True, "justify": "right"},
    "": {"overflow": "fold"},
}


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


class Summary(Callback):
    """Prints the table of a sweep's jobs when all have ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collects the outcomes of the jobs; a job without one was killed."""
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
