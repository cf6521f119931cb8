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


def segmentation(folder: Path) -> list[str]:
    return [
        *("data.render.size=[32,64]", "data.train=10", "data.test=2", "data.batch_size=4"),
        *("pair.teacher.architecture.channels=[16,16,16,32]", "pair.teacher.architecture.stem_width=8"),
    ]


def hoi(folder: Path) -> list[str]:
    return [
        *(
            "data.kitchen.videos=20",
            "data.kitchen.subjects=4",
            "data.transforms.crop=12",
            "data.labels=1.0",
            "data.batch_size=4",
        ),
        *("data.train=17", "data.test=3", "pair.teacher.architecture.width=16", "pair.student.architecture.width=8"),
    ]


def graph(folder: Path) -> list[str]:
    return [
        *("data.citations.papers=250", "data.citations.per_class=5", "data.steps=2"),
        *("pair.teacher.architecture.width=16", "pair.student.architecture.width=8"),
    ]


def detection(folder: Path) -> list[str]:
    small = {"teacher": 8, "student": 4}
    return [
        *("data.render.size=[64,96]", "data.render.train=10", "data.render.test=2", "data.train=10"),
        *(f"pair.{side}.architecture.override.backbone.base_channels={width}" for side, width in small.items()),
        *(
            f"pair.{side}.architecture.override.neck.in_channels={[width, 2 * width, 4 * width, 8 * width]}".replace(
                " ", ""
            )
            for side, width in small.items()
        ),
    ]


def text(folder: Path) -> list[str]:
    return [
        *(
            "data.grammar.texts=60",
            "data.grammar.test=8",
            "data.grammar.length=12",
            "data.labels=24",
            "data.batch_size=8",
        ),
        *(
            "pair.teacher.architecture.width=16",
            "pair.teacher.architecture.layers=2",
            "pair.student.architecture.width=8",
        ),
    ]


#: Overrides by task, for a second a cell, two steps an epoch; a task that is not here is as its smoke preset says.
TINY: dict[str, Callable[[Path], list[str]]] = {
    "classification": classification,
    "detection": detection,
    "graph": graph,
    "hoi": hoi,
    "pointcloud": pointcloud,
    "segmentation": segmentation,
    "text": text,
}


def overrides(task: str, folder: Path) -> list[str]:
    """The overrides of a task, whose data is written below ``folder``."""
    return TINY[task](folder / task) if task in TINY else []
