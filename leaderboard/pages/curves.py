"""Reading of what a run wrote epoch by epoch."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from pathlib import Path
from typing import Any

from kdbench.records.record import CURVES, RUN
from leaderboard.row import LARGEST as NUMBER

#: Largest file that is read.
LARGEST = 5_000_000

Epochs = list[dict[str, float]]


def of(path: str) -> Epochs:
    """Reads the curves beside a record; none where there are none."""
    file = Path(path)
    return epochs(read(file.with_name(CURVES), LARGEST)) if file.name == RUN else []


def read(path: Path, largest: int) -> bytes | None:
    """Reads a file; None where there is none or a larger one."""
    try:
        with path.open("rb") as stream:
            content = stream.read(largest + 1)
    except OSError:
        return None
    return content if len(content) <= largest else None


def epochs(content: bytes | None) -> Epochs:
    """Reads the content of ``metrics.csv`` as far as it can be read; what is no number that makes sense is left out."""
    rows: Epochs = []
    with contextlib.suppress(csv.Error):
        for line in csv.DictReader(io.StringIO((content or b"").decode("utf-8", "replace"))):
            values = {str(key): _number(text) for key, text in line.items()}
            rows.append({key: value for key, value in values.items() if abs(value) < NUMBER})
    return rows


def _number(text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return math.nan
    return 0.0 if abs(value) < 1 / NUMBER else value  # no axis has room for less


def line(epochs: Epochs, column: str) -> list[tuple[float, float]]:
    """Returns the epochs that have a value in a column, with it."""
    return [(row.get("epoch", float(i)), row[column]) for i, row in enumerate(epochs) if column in row]
