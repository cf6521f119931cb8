"""Triangle meshes of the things in a simulated street, built once and scaled to each object's size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BODY, GLASS, DARK, LOWER = range(4)  # parts of an object that reflect differently
VARIANTS = 10


@dataclass(frozen=True)
class Shape:
    """A mesh that fills the unit box: x and y in [-0.5, 0.5], z in [0, 1]; it faces +x.

    Attributes:
        vertices: (V, 3).
        triangles: (F, 3) vertex indices.
        part: (F,) one of BODY, GLASS, DARK, LOWER.
        size: (3,) natural length, width and height in metres.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    part: np.ndarray
    size: np.ndarray

    def place(self, size: np.ndarray, yaw: float, bottom: np.ndarray) -> np.ndarray:
        """Returns the (V, 3) vertices with ``size`` (l, w, h), turned by ``yaw``, standing on ``bottom``."""
        x, y, z = (self.vertices * size).T
        cos, sin = np.cos(yaw), np.sin(yaw)
        return np.column_stack([x * cos - y * sin, x * sin + y * cos, z]) + bottom


_Point = Sequence[float] | np.ndarray
_Piece = tuple[np.ndarray, np.ndarray, np.ndarray]  # vertices, triangles, part


def _shape(pieces: Iterable[_Piece]) -> Shape:
    """Joins pieces and scales them to the unit box."""
    vertices, triangles, parts = zip(*pieces, strict=True)
    offsets = np.cumsum([0, *map(len, vertices)])[:-1]
    joined = np.concatenate(vertices)
    low, high = joined.min(axis=0), joined.max(axis=0)
    joined = (joined - low) / (high - low) - [0.5, 0.5, 0]
    indices = np.concatenate([t + offset for t, offset in zip(triangles, offsets, strict=True)])
    return Shape(joined, indices, np.concatenate(parts), high - low)


def _loft(sections: np.ndarray, part: int, closed: bool = False) -> _Piece:
    """Spans quads between consecutive sections (S, K, 3), each a closed outline; caps both ends unless ``closed``."""
    count, sides = sections.shape[:2]
    s, k = np.meshgrid(np.arange(count if closed else count - 1), np.arange(sides), indexing="ij")
    here, right = s * sides + k, s * sides + (k + 1) % sides
    above, diagonal = (s + 1) % count * sides + k, (s + 1) % count * sides + (k + 1) % sides
    triangles = np.stack([here, right, diagonal, here, diagonal, above], axis=-1).reshape(-1, 3)
    if not closed:
        fan = np.array([(0, i, i + 1) for i in range(1, sides - 1)])
        triangles = np.concatenate([triangles, fan, fan + (count - 1) * sides])
    return sections.reshape(-1, 3), triangles, np.full(len(triangles), part)


def _tube(start: _Point, end: _Point, radii: tuple[float, ...], part: int, sides: int = 8) -> _Piece:
    """A straight tube with the given radii spread evenly along it."""
    a, b = np.array(start, dtype=float), np.array(end, dtype=float)
    axis = (b - a) / np.linalg.norm(b - a)
    across = np.cross(axis, [1.0, 0, 0] if abs(axis[0]) < 0.9 else [0, 1.0, 0])
    across /= np.linalg.norm(across)
    angle = np.arange(sides) * 2 * np.pi / sides
    circle = np.outer(np.cos(angle), across) + np.outer(np.sin(angle), np.cross(axis, across))
    path = a + np.linspace(0, 1, len(radii))[:, None] * (b - a)
    return _loft(path[:, None] + np.array(radii)[:, None, None] * circle, part)


def _capsule(start: _Point, end: _Point, radii: tuple[float, float], part: int) -> _Piece:
    """A limb: a tube from ``start`` to ``end`` with a rounded cap at each end."""
    a, b = np.array(start, dtype=float), np.array(end, dtype=float)
    vertices, triangles, parts = _tube(start, end, (0.0, 0.7, 1.0, 1.0, 0.7, 0.0), part)
    axis = (b - a) / np.linalg.norm(b - a)
    rings = vertices.reshape(6, -1, 3)
    radial = rings - rings.mean(axis=1, keepdims=True)
    before, after = radii[0] * axis, radii[1] * axis
    centres = np.stack([a - before, a - 0.7 * before, a, b, b + 0.7 * after, b + after])
    width = np.array([radii[0]] * 3 + [radii[1]] * 3)
    return (centres[:, None] + width[:, None, None] * radial).reshape(-1, 3), triangles, parts


# A car's outline from front to rear, in shares of its length, half width and height:
# x, half width, height of the waist, height of the top, half width of the top, glass up to the next station
# (0 none, 1 side windows, 2 side windows and a windscreen).
_HULLS = {
    "sedan": (
        (0.50, 0.40, 0.36, 0.40, 0.36, 0),
        (0.45, 0.48, 0.44, 0.47, 0.42, 0),
        (0.20, 0.50, 0.58, 0.61, 0.44, 2),
        (0.02, 0.50, 0.60, 0.97, 0.36, 1),
        (-0.12, 0.50, 0.61, 1.00, 0.36, 1),
        (-0.24, 0.50, 0.61, 0.97, 0.36, 2),
        (-0.40, 0.49, 0.61, 0.66, 0.42, 0),
        (-0.48, 0.46, 0.56, 0.62, 0.40, 0),
        (-0.50, 0.42, 0.48, 0.54, 0.38, 0),
    ),
    "hatchback": (
        (0.50, 0.40, 0.38, 0.42, 0.36, 0),
        (0.46, 0.48, 0.46, 0.50, 0.42, 0),
        (0.27, 0.50, 0.58, 0.62, 0.44, 2),
        (0.10, 0.50, 0.60, 0.97, 0.37, 1),
        (-0.10, 0.50, 0.60, 1.00, 0.37, 1),
        (-0.38, 0.49, 0.61, 0.97, 0.36, 2),
        (-0.48, 0.48, 0.60, 0.64, 0.42, 0),
        (-0.50, 0.45, 0.40, 0.55, 0.40, 0),
    ),
    "estate": (
        (0.50, 0.41, 0.40, 0.46, 0.37, 0),
        (0.46, 0.48, 0.48, 0.54, 0.42, 0),
        (0.23, 0.50, 0.60, 0.64, 0.45, 2),
        (0.10, 0.50, 0.62, 0.96, 0.40, 1),
        (-0.05, 0.50, 0.62, 1.00, 0.40, 1),
        (-0.44, 0.49, 0.62, 0.98, 0.39, 2),
        (-0.49, 0.49, 0.60, 0.68, 0.42, 0),
        (-0.50, 0.46, 0.42, 0.58, 0.40, 0),
    ),
    "van": (
        (0.50, 0.42, 0.30, 0.36, 0.38, 0),
        (0.47, 0.48, 0.38, 0.44, 0.44, 0),
        (0.36, 0.50, 0.48, 0.55, 0.46, 2),
        (0.22, 0.50, 0.52, 0.95, 0.42, 1),
        (0.10, 0.50, 0.52, 1.00, 0.44, 0),
        (-0.49, 0.50, 0.50, 1.00, 0.44, 0),
        (-0.50, 0.48, 0.50, 0.98, 0.43, 0),
    ),
}


def _vehicle(hull: str, rng: np.random.Generator) -> Shape:
    stations = np.array(_HULLS[hull])
    x, half, waist, top, top_half, glass = stations.T
    x = x + np.where(np.abs(x) < 0.45, rng.normal(0, 0.015), 0)
    waist = waist * rng.normal(1, 0.02)
    bottom, middle = np.full(len(x), 0.14), (0.14 + waist) / 2
    right = np.stack([[0.9 * half, bottom], [half, middle], [0.97 * half, waist], [top_half, np.maximum(top, waist)]])
    left = right[::-1] * np.array([-1, 1])[None, :, None]
    outline = np.concatenate([right, left]).transpose(2, 0, 1)  # (stations, 8, y and z)
    sections = np.concatenate([np.broadcast_to(x[:, None, None], (*outline.shape[:2], 1)), outline], axis=-1)
    vertices, triangles, part = _loft(sections, BODY)
    quads = part[: (len(x) - 1) * 16].reshape(len(x) - 1, 8, 2)  # sides: 2 and 4 are the windows, 3 the roof or screen
    quads[glass[:-1] >= 1, 2], quads[glass[:-1] >= 1, 4], quads[glass[:-1] == 2, 3] = GLASS, GLASS, GLASS
    wheels = []
    for wheel_x in (0.32, -0.29):
        for side in (1, -1):
            wheel = _tube((wheel_x, 0.48 * side, 0.0), (wheel_x, 0.36 * side, 0.0), (1.0, 1.0), DARK, sides=12)
            centre = np.array([wheel_x, 0.0, 0.0])
            scale = np.array([0.085, 1.0, 0.215])  # round once the car is scaled to its length and height
            wheels.append(((wheel[0] - centre) * scale + centre + [0, 0, 0.215], *wheel[1:]))
    size = np.array([5.07, 1.90, 2.21]) if hull == "van" else np.array([3.88, 1.63, 1.53])
    shape = _shape([(vertices, triangles, part), *wheels])
    return Shape(shape.vertices, shape.triangles, shape.part, size)


def _upper_body(hip: np.ndarray, shoulder: np.ndarray, width: float) -> list[_Piece]:
    torso = _capsule(hip, shoulder, (0.15 * width, 0.19 * width), BODY)
    chest = (torso[0] - shoulder) * [0.8, 1.25, 1.0] + shoulder
    neck = shoulder + [0.03, 0, 0.17]
    head = _capsule(neck, neck + [0.01, 0, 0.08], (0.10, 0.11), BODY)
    return [(chest, *torso[1:]), head]


def _pedestrian(rng: np.random.Generator) -> Shape:
    stride, width, lean = rng.uniform(0.12, 0.4), rng.uniform(0.85, 1.2), rng.uniform(0.0, 0.08)
    hip, shoulder = np.array([0, 0, 0.95]), np.array([lean, 0, 1.38])
    pieces = _upper_body(hip, shoulder, width)
    for side in (1, -1):
        foot = (stride * side, 0.11 * side, 0.08)
        knee = (stride * side * 0.45 + 0.04, 0.1 * side, 0.5)
        hand = (lean - stride * side * 0.9, (0.25 + rng.uniform(0, 0.06)) * side, rng.uniform(0.8, 1.0))
        pieces.append(_capsule((0, 0.09 * side, 0.9), knee, (0.09, 0.07), LOWER))
        pieces.append(_capsule(knee, foot, (0.07, 0.06), LOWER))
        pieces.append(_capsule((lean, 0.23 * width * side, 1.38), hand, (0.06, 0.045), BODY))
    kind = rng.integers(4)
    if kind == 0:  # a rucksack
        pieces.append(_capsule((lean - 0.25, 0, 1.05), (lean - 0.25, 0, 1.3), (0.13, 0.13), DARK))
    elif kind == 1:  # a long coat
        pieces.append(_tube((0, 0, 0.45), (0, 0, 1.0), (0.24 * width, 0.2 * width), BODY))
    elif kind == 2:  # a bag at the hand
        pieces.append(_capsule((0.05, 0.38, 0.5), (0.05, 0.38, 0.75), (0.1, 0.08), DARK))
    return _shape(pieces)


def _bicycle() -> list[_Piece]:
    crank, saddle, head, bar = (-0.05, 0, 0.3), (-0.22, 0, 0.95), (0.37, 0, 0.85), (0.4, 0, 1.02)
    pieces = []
    for hub in (0.53, -0.53):
        around, tyre = (np.arange(n) * 2 * np.pi / n for n in (16, 4))
        radius = 0.33 + 0.03 * np.cos(tyre)
        x, z = np.cos(around)[:, None] * radius, np.sin(around)[:, None] * radius
        y = np.broadcast_to(0.03 * np.sin(tyre), x.shape)
        pieces.append(_loft(np.stack([x + hub, y, z + 0.36], axis=-1), DARK, closed=True))
        pieces.append(_tube((hub, 0, 0.36), head if hub > 0 else crank, (0.02, 0.02), BODY, sides=4))
    for start, end in ((crank, saddle), (crank, head), (saddle, head), (saddle, (-0.53, 0, 0.36)), (head, bar)):
        pieces.append(_tube(start, end, (0.025, 0.025), BODY, sides=5))
    pieces.append(_tube((0.4, -0.26, 1.02), (0.4, 0.26, 1.02), (0.02, 0.02), DARK, sides=4))
    return pieces


def _cyclist(rng: np.random.Generator) -> Shape:
    hip = np.array([-0.2, 0, 1.02])
    shoulder = np.array([rng.uniform(0.0, 0.2), 0, rng.uniform(1.38, 1.45)])
    pieces = [*_bicycle(), *_upper_body(hip, shoulder, rng.uniform(0.9, 1.15))]
    phase = rng.uniform(0, 2 * np.pi)
    for side in (1, -1):
        turn = phase + (np.pi if side < 0 else 0)
        foot = (-0.05 + 0.17 * np.cos(turn), 0.12 * side, 0.3 + 0.17 * np.sin(turn))
        knee = (0.2 + 0.08 * np.cos(turn), 0.13 * side, 0.72 + 0.1 * np.sin(turn))
        pieces.append(_capsule((-0.2, 0.1 * side, 0.98), knee, (0.09, 0.07), LOWER))
        pieces.append(_capsule(knee, foot, (0.07, 0.05), LOWER))
        arm = (shoulder[0], 0.22 * side, shoulder[2] - 0.02)
        pieces.append(_capsule(arm, (0.4, 0.24 * side, 1.05), (0.06, 0.045), BODY))
    return _shape(pieces)


def _leaves(rng: np.random.Generator, box: bool) -> Shape:
    """A porous cloud of small triangles in a ball or box, so that part of the rays passes."""
    count = 220
    centre = rng.uniform(-1, 1, (count, 3)) if box else rng.normal(size=(count, 3))
    if not box:
        centre *= rng.uniform(0.15, 1, (count, 1)) ** (1 / 3) / np.linalg.norm(centre, axis=1, keepdims=True)
    corners = centre[:, None] + rng.normal(0, 0.09, (count, 3, 3))
    return _shape([(corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3), np.full(count, BODY))])


def _box() -> _Piece:
    outline = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    sections = np.stack([np.column_stack([outline, np.full(4, z)]) for z in (0.0, 1.0)])
    return _loft(sections, BODY)


@lru_cache
def shapes(kind: str) -> tuple[Shape, ...]:
    """Returns the variants of a kind of thing, the same in every process."""
    rng = np.random.default_rng(sum(map(ord, kind)))
    match kind:
        case "Car":
            hulls = [("sedan", "hatchback", "estate")[i % 3] for i in range(VARIANTS)]
            return tuple(_vehicle(hull, rng) for hull in hulls)
        case "Van":
            return tuple(_vehicle("van", rng) for _ in range(4))
        case "Pedestrian":
            return tuple(_pedestrian(rng) for _ in range(2 * VARIANTS))
        case "Cyclist":
            return tuple(_cyclist(rng) for _ in range(VARIANTS))
        case "bicycle":
            return (_shape(_bicycle()),)
        case "pole":
            return (_shape([_tube((0, 0, 0), (0, 0, 1), (0.5, 0.5), BODY)]),)
        case "sign":
            plate = _box()
            post = _tube((0, 0, 0), (0, 0, 1), (0.04, 0.04), BODY, sides=6)
            return tuple(
                _shape([post, (plate[0] * [0.05, width, height] + [0.05, 0, 1 - height], *plate[1:])])
                for width, height in ((0.5, 0.25), (0.6, 0.35), (0.4, 0.55))
            )
        case "crown" | "hedge":
            return tuple(_leaves(rng, box=kind == "hedge") for _ in range(VARIANTS))
        case _:
            return (_shape([_box()]),)
