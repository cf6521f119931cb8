"""Flat polygons in space, the only thing that is painted: boxes, discs and figures, many of a kind at once.

Axes are x to the right, y up and z ahead, in metres, the ground at y = 0. Every polygon has its outward normal, by
which it is lit, and left out where it faces away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

#: Corners of the unit box by face: left, right, near, far, top.
_LOW, _HIGH = -0.5, 0.5
FACES = np.array(
    [
        [[_LOW, 0, _LOW], [_LOW, 1, _LOW], [_LOW, 1, _HIGH], [_LOW, 0, _HIGH]],
        [[_HIGH, 0, _LOW], [_HIGH, 1, _LOW], [_HIGH, 1, _HIGH], [_HIGH, 0, _HIGH]],
        [[_LOW, 0, _LOW], [_LOW, 1, _LOW], [_HIGH, 1, _LOW], [_HIGH, 0, _LOW]],
        [[_LOW, 0, _HIGH], [_LOW, 1, _HIGH], [_HIGH, 1, _HIGH], [_HIGH, 0, _HIGH]],
        [[_LOW, 1, _LOW], [_LOW, 1, _HIGH], [_HIGH, 1, _HIGH], [_HIGH, 1, _LOW]],
    ]
)
NORMALS = np.array([[-1.0, 0, 0], [1, 0, 0], [0, 0, -1], [0, 0, 1], [0, 1, 0]])
#: Of what always turns towards the camera.
FACING = np.array([0.0, 0, -1])
CORNERS = 8  # of a disc


@dataclass
class Polygons:
    """Polygons of one number of corners.

    Attributes:
        points: ``(N, K, 3)`` corners.
        normals: ``(N, 3)``.
        colours: ``(N, 3)`` RGB in 0..1.
        things: ``(N,)`` which thing each is part of.
        parts: ``(N,)`` order within the thing: greater ones are painted later.
        casts: ``(N,)`` whether it casts a shadow.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    things: np.ndarray
    parts: np.ndarray
    casts: np.ndarray


@dataclass
class Stage:
    """All things of a scene.

    Attributes:
        labels: Class of each thing, by name.
        depths: Distance by which things are painted, far ones first.
        tiers: Things of a lower tier are painted before all others.
        polygons: What they are made of.
    """

    labels: list[str] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)
    tiers: list[int] = field(default_factory=list)
    polygons: list[Polygons] = field(default_factory=list)

    def things(self, label: str, depths: Sequence[float] | np.ndarray, tier: int = 1) -> np.ndarray:
        """Adds things of a class at distances and returns their numbers ``(N,)``."""
        first = len(self.labels)
        self.labels += [label] * len(depths)
        self.depths += [float(d) for d in depths]
        self.tiers += [tier] * len(depths)
        return np.arange(first, len(self.labels))

    def add(
        self,
        things: np.ndarray,
        points: np.ndarray,
        normals: np.ndarray,
        colours: np.ndarray,
        part: int = 0,
        casts: bool = True,
    ) -> None:
        """Adds polygons to things.

        Args:
            things: ``(N,)`` numbers of things.
            points: ``(N, ..., K, 3)``; all polygons of a row are of its thing, those that come first are painted first.
            normals: Broadcasts to ``(N, ..., 3)``.
            colours: Likewise; ``(N, 3)`` gives each thing one.
            part: Later ones are painted over earlier ones of the same thing.
            casts: Whether they cast a shadow.
        """
        if not len(things) or not points.size:
            return
        each = points.shape[:-2]
        if colours.shape == (len(things), 3):
            colours = colours.reshape(len(things), *(1 for _ in each[1:]), 3)
        count = int(np.prod(each[1:]))
        flat = points.reshape(-1, *points.shape[-2:])
        self.polygons.append(
            Polygons(
                flat,
                np.broadcast_to(normals, (*each, 3)).reshape(-1, 3),
                np.broadcast_to(colours, (*each, 3)).reshape(-1, 3),
                np.repeat(things, count),
                np.full(len(flat), part),
                np.full(len(flat), casts),
            )
        )

    def merged(self) -> list[Polygons]:
        """Returns all polygons, those of one number of corners together."""
        counts = sorted({group.points.shape[1] for group in self.polygons})
        groups = [[g for g in self.polygons if g.points.shape[1] == count] for count in counts]
        names = [f.name for f in fields(Polygons)]
        return [Polygons(*(np.concatenate([getattr(g, n) for g in group]) for n in names)) for group in groups]


def boxes(
    place: np.ndarray,
    size: np.ndarray,
    yaw: np.ndarray | float = 0.0,
    taper: tuple[float, float] = (1.0, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the five seen faces of boxes.

    Args:
        place: ``(N, 3)`` middle of the lower face.
        size: ``(N, 3)`` width (x), height, length (z) before the turn.
        yaw: Turn about the vertical, rad.
        taper: Width and length of the upper face over those of the lower one.

    Returns:
        Corners ``(N, 5, 4, 3)`` and normals ``(N, 5, 3)``.
    """
    unit = FACES.copy()
    upper = unit[..., 1] > 0
    unit[..., 0][upper] *= taper[0]
    unit[..., 2][upper] *= taper[1]
    corners = unit * size[:, None, None]
    return place_at(corners, place, yaw), turned(NORMALS[None], yaw, len(place))


def turned(vectors: np.ndarray, yaw: np.ndarray | float, count: int) -> np.ndarray:
    """Turns vectors ``(1 or N, ..., 3)`` about the vertical, each row by its own angle; ``(count, ..., 3)``."""
    angle = np.broadcast_to(np.asarray(yaw, dtype=np.float64), (count,)).reshape(-1, *(1 for _ in vectors.shape[1:-1]))
    sine, cosine = np.sin(angle), np.cos(angle)
    x, y, z = np.moveaxis(vectors, -1, 0)
    y = np.broadcast_to(y, np.broadcast_shapes(y.shape, angle.shape))
    return np.stack([cosine * x + sine * z, y, cosine * z - sine * x], axis=-1)


def place_at(points: np.ndarray, place: np.ndarray, yaw: np.ndarray | float = 0.0) -> np.ndarray:
    """Turns points ``(N, ..., 3)`` about the vertical and moves each row to its ``place`` ``(N, 3)``."""
    return turned(points, yaw, len(place)) + place.reshape(-1, *(1 for _ in points.shape[1:-1]), 3)


def inset(faces: np.ndarray, wide: float, low: float, high: float) -> np.ndarray:
    """Returns panes within upright faces ``(..., 4, 3)``: so wide, from ``low`` to ``high``, as shares of the face."""
    lower_a, upper_a, upper_b, lower_b = np.moveaxis(faces, -2, 0)

    def at(across: float, up: float) -> np.ndarray:
        left, right = lower_a + up * (upper_a - lower_a), lower_b + up * (upper_b - lower_b)
        return left + across * (right - left)

    edge = (1 - wide) / 2
    return np.stack([at(edge, low), at(edge, high), at(1 - edge, high), at(1 - edge, low)], axis=-2)


def discs(centre: np.ndarray, radii: np.ndarray, jitter: np.ndarray | None = None, upright: str = "x") -> np.ndarray:
    """Returns upright discs as polygons of eight corners.

    Args:
        centre: ``(..., 3)``.
        radii: ``(..., 2)`` along ``upright`` and along y.
        jitter: ``(..., 8)`` factor of the radius at each corner.
        upright: Horizontal axis that they lie along.

    Returns:
        ``(..., 8, 3)``.
    """
    angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
    factor = np.ones(CORNERS) if jitter is None else jitter
    points = np.repeat(centre[..., None, :].astype(np.float64), CORNERS, axis=-2)
    points[..., "xyz".index(upright)] += radii[..., :1] * np.cos(angle) * factor
    points[..., 1] += radii[..., 1:] * np.sin(angle) * factor
    return points
