"""Augmentation of a scan: ground-truth sampling, flip, rotation and scaling, as PointPillars is trained with.

Everything is NumPy, so that it runs in the processes of a data loader. Boxes are ``(N, 7)`` x, y, z of the centre, l,
w, h and yaw (counter-clockwise about z); points ``(P, 4)`` x, y, z, reflectance. No function changes its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kdbench.errors import KDBenchError
from tasks.pointcloud.database import Database, points_in_boxes
from tasks.pointcloud.kitti import wrap_angle

GROUND_CELL = 2.0  # m
GROUND_QUANTILE = 0.1  # of the heights in a cell: half of the lowest fifth, the median of the lowest ones
GROUND_POINTS = 5  # a cell with fewer says nothing about the ground
GROUND_CELLS = 10  # a scan with fewer cells does not either
GROUND_START = 0.3  # quantile of the cells' heights where the fit starts
GROUND_BANDS = (1.0, 0.67, 0.45, 0.3, 0.2)  # m

Scan = tuple[np.ndarray, np.ndarray]
Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]


def overlap_bev(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tells which boxes share area in bird's-eye view, by separating axes: ``(N, 7)``, ``(M, 7)`` -> ``(N, M)`` bool.

    Two rectangles are apart if and only if their projections are on one of the four directions of their sides. Boxes
    that only touch do not overlap.
    """
    turn = b[None, :, 6] - a[:, None, 6]
    cos, sin = np.abs(np.cos(turn)), np.abs(np.sin(turn))
    dx, dy = b[None, :, 0] - a[:, None, 0], b[None, :, 1] - a[:, None, 1]
    half_a, half_b = a[:, None, 3:5] / 2, b[None, :, 3:5] / 2
    overlap = np.ones(turn.shape, dtype=bool)
    for yaw, own, other in ((a[:, None, 6], half_a, half_b), (b[None, :, 6], half_b, half_a)):
        along, across = dx * np.cos(yaw) + dy * np.sin(yaw), dy * np.cos(yaw) - dx * np.sin(yaw)
        overlap &= np.abs(along) < own[..., 0] + other[..., 0] * cos + other[..., 1] * sin
        overlap &= np.abs(across) < own[..., 1] + other[..., 0] * sin + other[..., 1] * cos
    return overlap


def accept(candidates: np.ndarray, existing: np.ndarray) -> np.ndarray:
    """Chooses greedily, in the order given, the candidates that overlap neither existing nor accepted boxes.

    The greedy choice is the only fixed point of "accepted if free of existing boxes and of earlier accepted ones"; it
    is reached in as many rounds as the longest chain of overlaps.

    Args:
        candidates: ``(N, 7)`` boxes; the earlier of two that overlap wins.
        existing: ``(M, 7)`` boxes of the scene.

    Returns:
        ``(N,)`` bool.
    """
    free = ~np.any(overlap_bev(candidates, existing), axis=1)
    earlier = np.tril(overlap_bev(candidates, candidates), k=-1)
    accepted = free
    while True:
        update = free & ~np.any(earlier & accepted, axis=1)
        if np.array_equal(update, accepted):
            return accepted
        accepted = update


def draw(database: Database, labels: np.ndarray, totals: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Draws objects that would bring each class up to its total, without replacement.

    Args:
        database: Where objects come from; ``labels`` index into its classes.
        labels: ``(N,)`` labels of the scene.
        totals: Wanted objects by class, in order of precedence; a class that the database lacks is passed over.
        rng: Source of all draws.

    Returns:
        ``(K,)`` indices into the database: class after class, in the order of the draw.
    """
    present = np.bincount(labels[labels >= 0], minlength=len(database.classes))
    chosen = [np.empty(0, dtype=np.int64)]
    for name, total in totals.items():
        members = database.members(name)
        if len(members) == 0:
            continue
        missing = max(0, total - present[database.labels[members[0]]])
        chosen.append(rng.choice(members, size=min(missing, len(members)), replace=False))
    return np.concatenate(chosen)


def fit_ground(points: np.ndarray) -> np.ndarray | None:
    """Fits a plane to the ground of a scan: trimmed least squares on the low points of square cells.

    What stands on the ground is left out by taking a low quantile of each cell, then by fitting again and again to the
    cells in an ever narrower band around the last plane.

    Args:
        points: ``(P, 4)`` points.

    Returns:
        ``(4,)`` a, b, c, d with ax + by + cz + d = 0 and c = 1, or None where too few points tell it.
    """
    columns, rows = np.floor(points[:, :2] / GROUND_CELL).astype(np.int64).T
    cells, z = columns * 100_000 + rows, points[:, 2]
    order = np.argsort(cells * 1024.0 + z, kind="stable")  # by cell, then by height
    _, first, counts = np.unique(cells[order], return_index=True, return_counts=True)
    lowest = order[first + (GROUND_QUANTILE * counts).astype(np.int64)][counts >= GROUND_POINTS]
    if len(lowest) < GROUND_CELLS:
        return None
    design = np.column_stack([points[lowest, :2], np.ones(len(lowest))]).astype(np.float64)
    height = z[lowest].astype(np.float64)
    plane = np.array([0.0, 0.0, np.quantile(height, GROUND_START)])
    for band in GROUND_BANDS:
        near = np.abs(height - design @ plane) < band
        plane = np.linalg.lstsq(design[near], height[near], rcond=None)[0]
    return np.array([-plane[0], -plane[1], 1.0, -plane[2]])


def ground_height(boxes: np.ndarray, plane: np.ndarray) -> np.ndarray:
    """Returns the z of a plane ``(4,)`` (see :func:`fit_ground`) under the centres of boxes ``(N, 7)``: ``(N,)``."""
    a, b, c, d = plane
    return -(a * boxes[:, 0] + b * boxes[:, 1] + d) / c


def paste(
    points: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    database: Database,
    chosen: np.ndarray,
    ground: np.ndarray | None = None,
) -> Labelled:
    """Pastes objects into a scan and removes the points of the scene inside their boxes.

    Args:
        points: ``(P, 4)`` points of the scene.
        boxes: ``(N, 7)`` boxes of the scene.
        labels: ``(N,)`` labels of the scene.
        database: Where the objects come from.
        chosen: ``(K,)`` indices into the database; see :func:`accept`.
        ground: ``(4,)`` plane that the objects are stood on; None leaves them at the height where they were seen.

    Returns:
        Points, boxes and labels: those of the scene first, then those of the objects.
    """
    added = database.boxes[chosen].astype(boxes.dtype)
    objects = database.points_of(chosen)
    if ground is not None:
        shift = (ground_height(added, ground) - (added[:, 2] - added[:, 5] / 2)).astype(boxes.dtype)
        added[:, 2] += shift
        objects[:, 2] += np.repeat(shift, database.counts[chosen])
    stays = np.ones(len(points), dtype=bool)
    stays[points_in_boxes(points, added)[0]] = False
    return (
        np.concatenate([points[stays], objects.astype(points.dtype)]),
        np.concatenate([boxes, added]),
        np.concatenate([labels, database.labels[chosen].astype(labels.dtype)]),
    )


def flip(points: np.ndarray, boxes: np.ndarray) -> Scan:
    """Mirrors a scan at the x axis: y and yaw change sign."""
    points, boxes = points.copy(), boxes.copy()
    points[:, 1] *= -1
    boxes[:, 1] *= -1
    boxes[:, 6] = wrap_angle(-boxes[:, 6])
    return points, boxes


def rotate(points: np.ndarray, boxes: np.ndarray, angle: float) -> Scan:
    """Turns a scan about the sensor's z axis by ``angle`` radians, counter-clockwise."""
    points, boxes = points.copy(), boxes.copy()
    cos, sin = math.cos(angle), math.sin(angle)
    for values in (points, boxes):
        x, y = values[:, 0].copy(), values[:, 1].copy()
        values[:, 0] = x * cos - y * sin
        values[:, 1] = x * sin + y * cos
    boxes[:, 6] = wrap_angle(boxes[:, 6] + angle)
    return points, boxes


def scale(points: np.ndarray, boxes: np.ndarray, factor: float) -> Scan:
    """Scales coordinates and sizes about the sensor."""
    points, boxes = points.copy(), boxes.copy()
    points[:, :3] *= factor
    boxes[:, :6] *= factor
    return points, boxes


def crop(points: np.ndarray, boxes: np.ndarray, labels: np.ndarray, point_range: Sequence[float]) -> Labelled:
    """Drops points outside a range (x, y, z minimum, then maximum) and boxes centred outside it in bird's-eye view."""
    low, high = np.asarray(point_range[:3]), np.asarray(point_range[3:])
    kept = _within(points, low, high)
    inside = _within(boxes, low[:2], high[:2])
    return points[kept], boxes[inside], labels[inside]


def _within(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    columns = values[:, : len(low)]
    inside = (columns >= low.astype(values.dtype)) & (columns < high.astype(values.dtype))
    return np.all(inside, axis=1)


@dataclass(frozen=True)
class Transforms:
    """The augmentation of a training scan; the defaults are those of PointPillars on KITTI.

    Attributes:
        flip: Probability of mirroring at the x axis.
        rotation: Range of the global rotation, radians.
        scale: Range of the global scaling.
        sample: Objects of each class that ground-truth sampling aims at; the first class has precedence.
        ground: Whether pasted objects are stood on the ground; else they stay at the height where they were seen.
        point_range: x, y, z minimum, then maximum, metres: objects centred outside are not pasted, and points and
            boxes outside at the end are dropped. None for no limit.
    """

    flip: float = 0.5
    rotation: tuple[float, float] = (-math.pi / 4, math.pi / 4)
    scale: tuple[float, float] = (0.95, 1.05)
    sample: dict[str, int] = field(default_factory=lambda: {"Car": 15, "Pedestrian": 15, "Cyclist": 15})
    ground: bool = True
    point_range: tuple[float, float, float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise KDBenchError(f"data.transforms.flip: found {self.flip}; expected a probability from 0 to 1")
        if self.rotation[0] > self.rotation[1]:
            raise KDBenchError(f"data.transforms.rotation: found {self.rotation}; expected the lower angle first")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise KDBenchError(
                f"data.transforms.scale: found {self.scale}; expected two factors above 0, the lower one first"
            )

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return bool(self.flip or any(self.rotation) or any(s != 1 for s in self.scale) or any(self.sample.values()))

    def __call__(
        self,
        points: np.ndarray,
        boxes: np.ndarray,
        labels: np.ndarray,
        rng: np.random.Generator,
        database: Database | None = None,
        ground: np.ndarray | None = None,
    ) -> Labelled:
        """Augments one scan.

        Objects are pasted first, then the scene is flipped, rotated and scaled. The numbers of the three transforms are
        drawn before those of the sampling: a scan is transformed alike with and without a database.

        Args:
            points: ``(P, 4)`` points.
            boxes: ``(N, 7)`` boxes.
            labels: ``(N,)`` labels, indices into the classes of the database.
            rng: Source of all draws.
            database: Objects to paste, or None.
            ground: Of the scan, ``(4,)``; see :func:`fit_ground`. None where it is unknown.

        Returns:
            Points, boxes and labels.
        """
        mirrored = rng.uniform() < self.flip
        angle, factor = rng.uniform(*self.rotation), rng.uniform(*self.scale)
        if database is not None:
            chosen = draw(database, labels, self.sample, rng)
            if self.point_range is not None:
                low, high = np.asarray(self.point_range[:2]), np.asarray(self.point_range[3:5])
                chosen = chosen[_within(database.boxes[chosen], low, high)]
            chosen = chosen[accept(database.boxes[chosen], boxes)]
            plane = ground if self.ground else None
            points, boxes, labels = paste(points, boxes, labels, database, chosen, plane)
        if mirrored:
            points, boxes = flip(points, boxes)
        points, boxes = scale(*rotate(points, boxes, angle), factor)
        if self.point_range is not None:
            return crop(points, boxes, labels, self.point_range)
        return points, boxes, labels
