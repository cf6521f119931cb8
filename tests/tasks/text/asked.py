"""Runs on questions over a graph, small enough for tests."""

from __future__ import annotations

from pathlib import Path

from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.runs.trainings import Trainings

SMALL = (
    *("task=text", "data=kgqa", "preset=smoke", "trainer.epochs=1", "teacher.trainer.epochs=1", "trainer.val_every=1"),
    *("trainer.accelerator=cpu", "trainer.threads=1", "data.train=null", "data.test=null", "data.batch_size=16"),
    "data.kgqa={people: 6, relations: 2, questions: [12, 24], test: [10, 10]}",
    *("pair.teacher.architecture.width=8", "pair.teacher.architecture.layers=1", "pair.student.architecture.width=8"),
)


def trainings(folder: Path, *more: str) -> Trainings:
    """The trainings of a run."""
    return Trainings(resolve(config.load([*SMALL, *more]), Store(folder / "cache")))
