"""The ground-truth database: labelled objects cut out of training scans, to be pasted into others.

Ground-truth sampling comes from SECOND (Yan et al., Sensors 2018). Objects keep the place where the sensor saw them,
because the number and pattern of their points depend on it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from kdbench.base.store import write_atomic
from kdbench.errors import KDBenchError

MIN_POINTS = 5
COLUMNS = 4  # of a point: x, y, z, reflectance

Sample = tuple[str, np.ndarray, np.ndarray, Sequence[str] | np.ndarray, np.ndarray]


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the integers of the ranges ``starts[i] : starts[i] + lengths[i]``, end to end."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def points_in_boxes(points: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the points ``(P, 3)`` or more columns in or on boxes ``(N, 7)``.

    Points are sorted along x once, so that the work grows with the pairs that are near and not with ``P * N``.

    Returns:
        Index of the point and of the box for each pair, ``(K,)`` each; by box, within one in the order of the points.
    """
    columns: np.ndarray = boxes.astype(np.float64).T
    x, y, z, length, width, height, yaw = columns
    cos, sin = np.cos(yaw), np.sin(yaw)
    reach_x, reach_y = (np.abs(length * a) / 2 + np.abs(width * b) / 2 for a, b in ((cos, sin), (sin, cos)))
    order = np.argsort(points[:, 0])
    sorted_x = points[order, 0].astype(np.float64)
    starts = np.searchsorted(sorted_x, x - reach_x, side="left")
    lengths = np.maximum(np.searchsorted(sorted_x, x + reach_x, side="right") - starts, 0)
    point, box = order[spans(starts, lengths)], np.repeat(np.arange(len(boxes)), lengths)

    dy = points[point, 1] - y[box]
    near = np.abs(dy) <= reach_y[box]
    point, box, dy = point[near], box[near], dy[near]
    dx, dz = points[point, 0] - x[box], points[point, 2] - z[box]
    inside = np.abs(dx * cos[box] + dy * sin[box]) <= length[box] / 2
    inside &= np.abs(dy * cos[box] - dx * sin[box]) <= width[box] / 2
    inside &= np.abs(dz) <= height[box] / 2
    point, box = point[inside], box[inside]
    order = np.lexsort((point, box))
    return point[order], box[order]


@dataclass(frozen=True)
class Columns:
    """Arrays that are kept in one ``.npz`` file."""

    def save(self, path: Path | str) -> None:
        """Writes the file, whole or not at all."""
        stream = io.BytesIO()
        arrays: dict[str, Any] = {column.name: getattr(self, column.name) for column in fields(self)}
        np.savez(stream, **arrays)
        write_atomic(Path(path), stream.getvalue())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a file of :meth:`save`, without pickle."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(**{column.name: stored[column.name] for column in fields(cls)})


@dataclass(frozen=True)
class Database(Columns):
    """M objects with their points, in the LiDAR frame of the scan that each comes from.

    Attributes:
        classes: ``(C,)`` class names.
        boxes: ``(M, 7)`` float32 x, y, z of the centre, l, w, h, yaw.
        labels: ``(M,)`` int64 index into ``classes``.
        difficulty: ``(M,)`` int64 KITTI's 0 easy, 1 moderate, 2 hard, -1 none.
        counts: ``(M,)`` int64 points of each object.
        points: ``(counts.sum(), 4)`` float32 x, y, z, reflectance, object after object.
        frames: ``(M,)`` names of the scans.
    """

    classes: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficulty: np.ndarray
    counts: np.ndarray
    points: np.ndarray
    frames: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def build(cls, frames: Iterable[Sample]) -> Database:
        """Cuts the objects out of scans.

        Args:
            frames: Per scan its name, points ``(P, 4)``, boxes ``(N, 7)``, class names ``(N,)`` and difficulties
                ``(N,)``.

        Returns:
            All objects, empty ones included; classes in alphabetical order.
        """

        def cut_out(name: str, scan: np.ndarray, boxes: np.ndarray, *labels: Any) -> tuple[np.ndarray, ...]:
            boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 7)
            point, box = points_in_boxes(scan, boxes)
            return boxes, scan[point], np.bincount(box, minlength=len(boxes)), np.full(len(boxes), name), *labels

        # An empty part comes first, so that no scan at all makes an empty database.
        nothing = np.empty((0, COLUMNS), np.float32), np.empty((0, 7)), np.empty(0, np.str_), np.empty(0, np.int64)
        parts = [cut_out("", *nothing), *(cut_out(*frame) for frame in frames)]
        boxes, points, counts, names, types, difficulty = map(np.concatenate, zip(*parts, strict=True))
        classes, labels = np.unique(types.astype(np.str_), return_inverse=True)
        return cls(
            classes=classes,
            boxes=boxes,
            labels=labels.astype(np.int64),
            difficulty=difficulty.astype(np.int64),
            counts=counts.astype(np.int64),
            points=points.astype(np.float32),
            frames=names,
        )

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.counts) - self.counts

    def points_of(self, index: np.ndarray) -> np.ndarray:
        """Returns the points ``(K, 4)`` of the objects that an index array names, object after object."""
        return self.points[spans(self._starts[index], self.counts[index])]

    def members(self, name: str) -> np.ndarray:
        """Returns the indices of the objects of a class; none where the class is absent."""
        return np.flatnonzero(self.classes[self.labels] == name)

    def select(self, which: np.ndarray) -> Database:
        """Returns the objects that a boolean mask or an index array names."""
        columns = {name: getattr(self, name)[which] for name in ("boxes", "labels", "difficulty", "counts", "frames")}
        return Database(classes=self.classes, points=self.points_of(which), **columns)

    def filter(self, classes: Sequence[str]) -> Database:
        """Keeps the objects that are worth pasting: of 5 points or more, and not such as KITTI ignores.

        Args:
            classes: Classes to keep; ``labels`` of the result index into them.

        Returns:
            A database of ``classes``, also where it holds no object of some.
        """
        match = self.classes[:, None] == np.asarray(classes, dtype=np.str_)[None]
        label = np.where(match.any(1), match.argmax(1), -1)[self.labels]
        keep = (label >= 0) & (self.difficulty >= 0) & (self.counts >= MIN_POINTS)
        return replace(self.select(keep), classes=np.asarray(classes, dtype=np.str_), labels=label[keep])

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a file of :meth:`save`.

        Raises:
            KDBenchError: for a missing file or one that is not a database.
        """
        try:
            database = super().load(path)
        except FileNotFoundError:
            raise KDBenchError(f"{path}: no such database; build it from the training frames") from None
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise KDBenchError(f"{path}: not a ground-truth database ({error}); delete it and build it again") from None
        database._check(path)
        return database

    def _check(self, path: Path | str) -> None:
        number = len(self.labels)
        shapes = {"boxes": (number, 7), "difficulty": (number,), "counts": (number,), "frames": (number,)}
        wrong = next((name for name, shape in shapes.items() if getattr(self, name).shape != shape), None)
        if wrong is not None:
            found = getattr(self, wrong).shape
            raise KDBenchError(f"{path}: {wrong} has shape {found}; expected {shapes[wrong]}; build it again")
        expected = (int(self.counts.sum()), COLUMNS)
        if (self.counts < 0).any() or self.points.shape != expected:
            raise KDBenchError(f"{path}: points has shape {self.points.shape}; expected {expected}; build it again")
        if not np.isin(self.labels, np.arange(len(self.classes))).all():
            raise KDBenchError(f"{path}: a label is not among the {len(self.classes)} classes; build it again")
