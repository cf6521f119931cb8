"""What makes the tasks of this repository small enough for a test of each with each method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.tasks.pointcloud import tiny as pointcloud_tiny


def pointcloud(folder: Path) -> list[str]:
    return [
        f"data.root={pointcloud_tiny.write(folder, train=5, test=1)}",
        "data.batch_size=2",
        f"task.point_range={pointcloud_tiny.RANGE}",
        "pair.teacher.architecture.width=0.25",
        "pair.student.architecture.width=0.125",
    ]


def classification(folder: Path) -> list[str]:
    return ["data=digits", "data.test=60", "data.labels=64", "data.batch_size=32"]


#: Overrides by task, for a second a cell, two steps an epoch; a task that is not here is as its smoke preset says.
TINY: dict[str, Callable[[Path], list[str]]] = {"classification": classification, "pointcloud": pointcloud}


def overrides(task: str, folder: Path) -> list[str]:
    """The overrides of a task, whose data is written below ``folder``."""
    return TINY[task](folder / task) if task in TINY else []
