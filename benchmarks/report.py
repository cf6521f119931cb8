"""A measurement against its limit, and the table of them."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from kdbench.base.machine import cores

MET, WITHIN, MISSED = "met", "within the null range", "missed"
#: What is wished for is more than this processor gives to anybody.
BEYOND = "beyond this processor"
#: Unit of a difference; every other unit is compared by ratio.
MORE = "ms more"

Span = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One measurement; smaller is better.

    Attributes:
        name: What was measured.
        unit: ``ms``, ``ms more``, ``s``, ``x`` (a ratio), ``MiB`` or ``points``.
        value: Median over the rounds.
        span: Smallest and largest over the rounds.
        limit: It should not exceed this; None where it is only shown.
        aim: Wished for.
        null: Span of the difference (``ms more``) or else the ratio of two copies of one contender in the same rounds:
            what the machine makes of nothing.
        reach: What a loop by hand reaches with the same means: a limit below it is one that this processor cannot meet.
        detail: Sizes and further figures.
    """

    name: str
    unit: str
    value: float
    span: Span | None = None
    limit: float | None = None
    aim: float | None = None
    null: Span | None = None
    reach: float | None = None
    detail: str = ""

    @classmethod
    def of(cls, name: str, unit: str, values: Sequence[float], null: Sequence[float], **more: Any) -> Row:
        """Makes a row from the values of all rounds and those of the null pair."""
        median = statistics.median(values)
        return cls(name, unit, median, (min(values), max(values)), null=(min(null), max(null)), **more)

    @property
    def verdict(self) -> str:
        """Whether the limit is met, or missed by no more than the null pair differs; empty where there is none."""
        if self.limit is None:
            return ""
        if self.value <= self.limit:
            return MET
        if self._near(self.limit):
            return WITHIN
        return BEYOND if self.reach is not None and self.reach > self.limit and self._near(self.reach) else MISSED

    def _near(self, goal: float) -> bool:
        """Says whether the null pair differs by as much as the value and a goal."""
        if self.null is None:
            return False
        if self.unit == MORE:
            return self.value - goal <= max(map(abs, self.null))
        return self.value / goal <= max(self.null[1], 1 / self.null[0])


def table(rows: Iterable[Row]) -> Table:
    """Returns the rows as a table."""
    grid = Table("what", "measured", "[min, max]", "limit", "aim", "null pair", "verdict")
    colours = {MET: "green", WITHIN: "yellow", MISSED: "red", BEYOND: "yellow", "": "default"}
    for row in rows:
        name = Text.assemble(row.name, (f"\n{row.detail}", "dim")) if row.detail else row.name
        limits = ("" if v is None else f"{v:.3g}" for v in (row.limit, row.aim))
        spans = ("" if s is None else f"[{s[0]:.3g}, {s[1]:.3g}]" for s in (row.span, row.null))
        span, null = spans
        verdict = Text(row.verdict, colours[row.verdict])
        grid.add_row(name, f"{row.value:.3g} {row.unit}", span, *limits, null, verdict, end_section=True)
    return grid


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Returns the rows as plain objects."""
    return [{**asdict(row), "verdict": row.verdict} for row in rows]


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    names = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in names if line.startswith("model name")), platform.machine()
    )
    return {
        "cpu": model,
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
