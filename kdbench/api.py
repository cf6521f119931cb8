"""What the command line does, from Python: ``kdbench.run("method=dkd", "seed=1")`` and ``kdbench.load(run)``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.configuration import config as configuration
from kdbench.records.schema import Record
from kdbench.runs.run import Run

if TYPE_CHECKING:
    from torch import nn


def run(*overrides: str) -> Record:
    """Does one run, as ``python -m kdbench`` does with the same words, and returns its record.

    A run that has its record is not done again. One that fails or diverges after it began returns a record that says
    so in ``status`` and ``reason``.

    Args:
        overrides: ``key=value``, e.g. ``"task=classification"``, ``"method=dkd"``, ``"preset=smoke"``.

    Raises:
        KDBenchError: Bad input: one line that says what, where and the nearest fix.

    Example:
        >>> record = run("method=kd", "preset=smoke")  # doctest: +SKIP
        >>> record.scores["student"].test["top1"]  # doctest: +SKIP
        57.1
    """
    given = configuration.in_place(configuration.at_home(overrides))
    configuration.choices(given, sweep=False)
    return Run(configuration.load(given), configuration.command_line(given)).execute().record


def load(run: Record | Path | str, artifact: str = "student", results: Path | str = "results") -> nn.Module:
    """Returns what a run trained, in eval mode with its weights; its data are not needed.

    Args:
        run: Its record, looked for in ``results``, or the folder of the record.
        artifact: ``student`` (of a teacher that was trained alone, that), or what else the run left (``converted``).
        results: The folder of all records.

    Raises:
        KDBenchError: There is no such record or artifact, or it was edited.
    """
    from kdbench.runs.deployment import read_run

    folder = Path(results, run.task, run.method, run.run_id) if isinstance(run, Record) else Path(run)
    return read_run(folder).artifact(artifact).module
