"""What the splits of a data set hold, and whether that is enough for a run, found out before anything trains."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rich.table import Table

from kdbench.errors import KDBenchError
from kdbench.task import Counts, Task

_log = logging.getLogger(__name__)

#: Classes that have a row of their own.
SHOWN = 20


def check(task: Task, tuned: bool = False) -> None:
    """Checks that there is something to learn from and something to score.

    Args:
        task: Its data prepared.
        tuned: Whether trials are compared on validation.

    Raises:
        KDBenchError: The end of the run needs what its data lacks.
    """
    counts = task.counts()
    data = task.dataset().name if counts else ""
    for split, found in counts.items():
        wanted = found.labels if split == "train" else found.judged
        missing = [name for name, count in wanted.items() if not count]
        what = "to learn from" if split == "train" else f"that {task.primary} counts"
        reason = f": {found.reason}" if found.reason else ""
        if not any(wanted.values()):
            line = f"{data}: {split} holds nothing {what} ({found.samples} samples, no {_named(missing)}){reason}"
            if split != "val" or tuned:
                raise KDBenchError(line)
            _log.warning("%s; no epoch is the best on validation", line)
        elif missing and split != "val":
            _log.warning("%s: %s holds no %s %s%s", data, split, _named(missing), what, reason)


def _named(classes: list[str]) -> str:
    return ", ".join(classes[:SHOWN]) + (f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else "")


def table(counts: Mapping[str, Counts]) -> Table:
    """Shows labels by class and split, with what is scored where that is another number."""
    units = " and ".join(dict.fromkeys(found.unit for found in counts.values()))
    shown = Table("class", title=f"labelled {units} (scored)")
    for split in counts:
        shown.add_column(split, justify="right")
    shown.add_row("samples", *(str(found.samples) for found in counts.values()))
    names = list(dict.fromkeys(name for found in counts.values() for name in found.labels))
    for name in names[:SHOWN]:
        shown.add_row(name, *(_cell(found, [name]) for found in counts.values()))
    if rest := names[SHOWN:]:
        shown.add_row(f"{len(rest)} further classes", *(_cell(found, rest) for found in counts.values()))
    return shown


def _cell(found: Counts, names: list[str]) -> str:
    labels, judged = (sum(part.get(name, 0) for name in names) for part in (found.labels, found.judged))
    return str(labels) if labels == judged else f"{labels} ({judged})"
