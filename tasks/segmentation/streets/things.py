"""What stands in a street, made of polygons: vehicles, people, poles, signs, trees, buildings, fences."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.segmentation.streets.shapes import CORNERS, FACING, NORMALS, Stage, boxes, discs, inset, place_at, turned

GLASS = np.array([0.10, 0.13, 0.17])
TYRE = np.array([0.05, 0.05, 0.055])
PAINTS = np.array(
    [
        [0.75, 0.75, 0.76], [0.08, 0.08, 0.09], [0.38, 0.39, 0.41], [0.55, 0.08, 0.08], [0.10, 0.18, 0.42],
        [0.82, 0.80, 0.74], [0.16, 0.30, 0.22], [0.20, 0.20, 0.23], [0.62, 0.45, 0.16],
    ]
)  # fmt: skip
CLOTHES = np.array(
    [
        [0.09, 0.09, 0.11], [0.14, 0.17, 0.30], [0.30, 0.30, 0.31], [0.62, 0.10, 0.12], [0.75, 0.73, 0.70],
        [0.22, 0.30, 0.22], [0.55, 0.42, 0.18], [0.38, 0.20, 0.38], [0.20, 0.42, 0.55], [0.28, 0.19, 0.13],
    ]
)  # fmt: skip
SKIN = np.array([[0.85, 0.66, 0.54], [0.70, 0.49, 0.36], [0.45, 0.29, 0.20], [0.30, 0.19, 0.13]])
HAIR = np.array([[0.08, 0.06, 0.05], [0.22, 0.14, 0.08], [0.45, 0.33, 0.16], [0.45, 0.44, 0.43]])
WALLS = np.array(
    [
        [0.62, 0.56, 0.46], [0.55, 0.34, 0.26], [0.70, 0.68, 0.63], [0.45, 0.43, 0.41], [0.72, 0.60, 0.42],
        [0.50, 0.47, 0.44], [0.60, 0.44, 0.36], [0.36, 0.33, 0.32], [0.64, 0.62, 0.58],
    ]
)  # fmt: skip
ROOFS = np.array([[0.42, 0.22, 0.17], [0.27, 0.26, 0.27], [0.36, 0.28, 0.23]])
LEAVES = np.array([[0.16, 0.28, 0.09], [0.23, 0.34, 0.12], [0.12, 0.22, 0.10], [0.34, 0.33, 0.12]])
STEEL = np.array([[0.34, 0.35, 0.36], [0.20, 0.21, 0.21], [0.46, 0.47, 0.47], [0.13, 0.22, 0.17]])
#: Ground of a sign, and its rim or figure.
PLATES = np.array(
    [
        [[0.80, 0.08, 0.10], [0.93, 0.93, 0.93]], [[0.93, 0.93, 0.93], [0.80, 0.08, 0.10]],
        [[0.08, 0.25, 0.65], [0.93, 0.93, 0.93]], [[0.95, 0.78, 0.10], [0.10, 0.10, 0.10]],
    ]
)  # fmt: skip
BOARD = np.array([[0.05, 0.22, 0.55], [0.92, 0.80, 0.18], [0.05, 0.38, 0.22], [0.90, 0.90, 0.90]])
PANEL = np.array([[0.40, 0.30, 0.20], [0.26, 0.32, 0.27], [0.55, 0.54, 0.52], [0.20, 0.21, 0.22]])
#: People, in units of their height: torso, its shift by the way they turn, and limbs.
HIP, SHOULDER, HEAD = 0.50, 0.82, 0.92


class Vehicle(NamedTuple):
    """Sizes of a kind of vehicle: of its body, metres, and of its cabin as shares of them."""

    label: str
    size: tuple[float, float, float]
    spread: float
    base: float
    body: float
    cabin: tuple[float, float, float]
    wheel: float


#: Of a bus the cabin is its upper half.
CAR = Vehicle("car", (1.8, 1.5, 4.3), 0.08, 0.25, 0.58, (0.92, 0.58, -0.06), 0.33)
VAN = Vehicle("car", (1.95, 2.1, 4.9), 0.06, 0.28, 0.52, (0.96, 0.86, -0.03), 0.36)
BUS = Vehicle("bus", (2.55, 3.1, 11.0), 0.05, 0.32, 0.45, (1.0, 1.0, 0.0), 0.50)


def pick(g: np.random.Generator, table: np.ndarray, count: int, spread: float = 0.06) -> np.ndarray:
    """Draws ``(count, 3)`` colours of a table, each a little off."""
    chosen = table[g.integers(len(table), size=count)]
    return (chosen * (1 + spread * g.standard_normal((count, 1))) + 0.02 * g.standard_normal((count, 3))).clip(0.02, 1)


def vehicles(stage: Stage, g: np.random.Generator, kind: Vehicle, place: np.ndarray, yaw: np.ndarray) -> None:
    """Adds vehicles of a kind at ``place`` ``(N, 3)``, the back towards the camera at a ``yaw`` of 0."""
    n = len(place)
    things = stage.things(kind.label, place[:, 2])
    size = np.array(kind.size) * (1 + kind.spread * g.uniform(-1, 1, (n, 3)))
    paint = pick(g, PAINTS, n)
    wide, tall, long = size.T
    up = np.zeros((n, 3))
    up[:, 1] = kind.base
    # Wheels of the far side are hidden by the body, those of this side are painted over it.
    ends = np.array([-0.31, 0.31])
    for side in (-1.0, 1.0):
        centre = np.zeros((n, 2, 3))
        centre[..., 0] = (side * 0.505 * wide)[:, None]
        centre[..., 1] = kind.wheel
        centre[..., 2] = ends * long[:, None]
        normal = turned(np.array([[side, 0.0, 0.0]]), yaw, n)[:, None]
        for part, radius, colour in ((4, kind.wheel, TYRE), (5, 0.5 * kind.wheel, np.array([0.4, 0.4, 0.42]))):
            wheels = discs(centre, np.full((n, 2, 2), radius), upright="z")
            stage.add(things, place_at(wheels, place, yaw), normal, colour, part, casts=False)
    body = np.column_stack([wide, kind.body * tall, long])
    faces, normals = boxes(place + up, body, yaw)
    stage.add(things, faces, normals, paint, 1)
    shadow = np.array(body) * [0.96, 0.0, 0.96]
    under, _ = boxes(place + [0, 0.02, 0], shadow + [0, kind.base, 0], yaw)
    stage.add(things, under, normals, np.array([0.03, 0.03, 0.035]))
    lamps = inset(faces[:, 2:4], 0.94, 0.62, 0.86)
    thirds = lamps[..., [0, 1, 2, 3], :]
    left, right = thirds.copy(), thirds.copy()
    left[..., 2:, :] = thirds[..., :2, :][..., ::-1, :] + 0.22 * (thirds[..., 2:, :] - thirds[..., :2, :][..., ::-1, :])
    right[..., :2, :] = thirds[..., 2:, :][..., ::-1, :] + 0.22 * (
        thirds[..., :2, :] - thirds[..., 2:, :][..., ::-1, :]
    )
    colours = np.array([[0.75, 0.06, 0.05], [0.95, 0.94, 0.85]])
    for each in (left, right):
        stage.add(things, each, normals[:, 2:4], colours, 2, casts=False)
    cabin, shorter, back = kind.cabin
    lift = kind.base + kind.body * tall
    top = np.column_stack([cabin * wide, tall - lift, shorter * long])
    offset = place_at(np.column_stack([0 * lift, lift, back * long])[:, None], place, yaw)[:, 0]
    faces, normals = boxes(offset, top, yaw, (0.86, 0.72) if kind.label == "car" else (1.0, 1.0))
    stage.add(things, faces, normals, paint * 0.95, 3)
    windows = inset(faces[:, :4], 0.90, 0.10, 0.86 if kind.label == "car" else 0.72)
    stage.add(things, windows, normals[:, :4], GLASS * g.uniform(0.7, 1.8, (n, 1)), 4, casts=False)


def people(stage: Stage, g: np.random.Generator, place: np.ndarray, side_on: np.ndarray) -> None:
    """Adds people at ``place`` ``(N, 3)``, seen from ahead or behind, or from the side where ``side_on`` ``(N,)``."""
    n = len(place)
    things = stage.things("person", place[:, 2])
    tall = g.uniform(1.5, 1.92, n) * np.where(g.random(n) < 0.12, 0.68, 1.0)
    stout = g.uniform(0.9, 1.25, n)
    broad = np.where(side_on, 0.66, 1.0) * stout
    stride = np.where(side_on, g.uniform(-0.16, 0.16, n), g.uniform(-0.02, 0.06, n))
    trousers, coat = pick(g, CLOTHES, n), pick(g, CLOTHES, n)

    def limb(x0: np.ndarray, y0: float, x1: np.ndarray, y1: float, wide0: float, wide1: float) -> np.ndarray:
        corners = np.zeros((n, 4, 3))
        corners[:, :, 0] = np.column_stack([x0 - wide0, x1 - wide1, x1 + wide1, x0 + wide0])
        corners[:, :, 1] = [y0, y1, y1, y0]
        return corners

    hips = 0.06 * broad
    legs = [limb(s * (hips + stride), 0.0, s * hips * 0.8, HIP + 0.03, 0.035, 0.058) for s in (-1, 1)]
    torso = limb(0 * tall, HIP - 0.06 * (g.random() < 0.5), 0 * tall, SHOULDER, 1.0, 1.0)
    torso[:, :, 0] *= (0.125 * broad)[:, None]
    torso[:, 1:3, 0] *= 1.06
    swing = np.where(side_on, g.uniform(-0.12, 0.12, n), g.uniform(0.0, 0.06, n))
    arms = [limb(s * (0.15 * broad + swing), 0.46, s * 0.125 * broad, SHOULDER, 0.026, 0.038) for s in (-1, 1)]
    for part, figures, colour in ((0, legs, trousers), (1, [arms[0]], 0.85 * coat), (2, [torso], coat)):
        stage.add(things, place_at(np.stack(figures, 1) * tall[:, None, None, None], place), FACING, colour, part)
    stage.add(things, place_at(arms[1][:, None] * tall[:, None, None, None], place), FACING, 0.9 * coat, 3)
    centre = place + np.column_stack([0 * tall, HEAD * tall, 0 * tall])
    radii = np.column_stack([0.062 * tall, 0.078 * tall])
    stage.add(things, discs(centre + np.column_stack([0 * tall, 0.014 * tall, 0 * tall]), radii * 1.1)[:, None], FACING,
              pick(g, HAIR, n), 4)  # fmt: skip
    face = np.where((g.random(n) < 0.5)[:, None], 0.78, 1.0)
    stage.add(things, discs(centre - [0, 0.02, 0], radii * face)[:, None], FACING, pick(g, SKIN, n), 5)


def poles(stage: Stage, g: np.random.Generator, place: np.ndarray, tall: np.ndarray, wide: np.ndarray,
          arm: np.ndarray) -> None:  # fmt: skip
    """Adds upright poles at ``place`` ``(N, 3)``, with an arm of a signed length over the road, 0 for none."""
    n = len(place)
    things = stage.things("pole", place[:, 2])
    colour = pick(g, STEEL, n)
    faces, normals = boxes(place, np.column_stack([wide, tall, wide]), taper=(0.75, 0.75))
    stage.add(things, faces, normals, colour)
    arms = np.flatnonzero(arm)
    if not len(arms):
        return
    middle = place[arms] + np.column_stack([arm[arms] / 2, tall[arms] - 0.12, 0 * arms])
    faces, normals = boxes(middle, np.column_stack([np.abs(arm[arms]), 0.7 * wide[arms], 0.7 * wide[arms]]))
    stage.add(things[arms], faces, normals, colour[arms], 1)
    lamp = middle + np.column_stack([arm[arms] / 2, 0 * arms - 0.05, 0 * arms])
    faces, normals = boxes(lamp, np.broadcast_to([0.62, 0.2, 0.3], (len(arms), 3)))
    stage.add(things[arms], faces, normals, colour[arms] * 1.1, 2)


def signs(stage: Stage, g: np.random.Generator, centre: np.ndarray, radius: np.ndarray) -> None:
    """Adds round and three- and four-cornered traffic signs that face the camera."""
    n = len(centre)
    things = stage.things("traffic sign", centre[:, 2] - 0.06)
    plate = PLATES[g.integers(len(PLATES), size=n)]
    form = g.integers(3, size=n)
    # Radii at the eight corners of a disc make the other forms: a square stands on its side, a triangle on its base.
    square = np.array([1.0, 1.41, 1.0, 1.41, 1.0, 1.41, 1.0, 1.41])
    angle = 2 * np.pi * np.arange(CORNERS) / CORNERS
    third = (angle - np.pi / 2 + np.pi / 3) % (2 * np.pi / 3) - np.pi / 3
    triangle = 0.62 / np.cos(np.abs(third) - np.pi / 3).clip(0.5)
    factor = np.stack([np.ones(CORNERS), square, triangle])[form]
    for part, scale in ((0, 1.0), (1, 0.66)):
        points = discs(centre, np.repeat((scale * radius)[:, None], 2, axis=1), factor)
        stage.add(things, points[:, None], FACING, plate[:, part], part, casts=part == 0)


def boards(stage: Stage, g: np.random.Generator, centre: np.ndarray, size: np.ndarray) -> None:
    """Adds large sign boards ``(N, 2)`` wide and tall, with a few lines on them."""
    n = len(centre)
    things = stage.things("traffic sign", centre[:, 2] - 0.1)
    place = centre - np.column_stack([0 * size[:, 0], size[:, 1] / 2, 0 * size[:, 0]])
    faces, normals = boxes(place, np.column_stack([size, np.full(n, 0.12)]))
    chosen = g.integers(len(BOARD), size=n)
    stage.add(things, faces, normals, BOARD[chosen])
    ink = np.where((BOARD[chosen].mean(1) > 0.5)[:, None], 0.08, 0.92) * np.ones(3)
    for low, high in ((0.16, 0.36), (0.56, 0.8)):
        line = inset(faces[:, 2:3], float(g.uniform(0.45, 0.8)), low, high)
        stage.add(things, line, normals[:, 2:3], ink, 1, casts=False)


def trees(stage: Stage, g: np.random.Generator, place: np.ndarray, trunk: np.ndarray, crown: np.ndarray,
          tier: int = 1) -> None:  # fmt: skip
    """Adds trees: a trunk of a height and above it a crown of a radius, both ``(N,)`` metres; no trunk makes a bush."""
    n, blobs = len(place), 16
    things = stage.things("vegetation", place[:, 2], tier)
    faces, normals = boxes(place, np.column_stack([0.14 * crown, trunk + 0.5 * crown, 0.14 * crown]), taper=(0.6, 0.6))
    stage.add(things, faces, normals, np.array([0.23, 0.17, 0.12]) * g.uniform(0.7, 1.2, (n, 1)))
    direction = g.standard_normal((n, blobs, 3))
    direction *= (g.random((n, blobs, 1)) ** 0.4 * 0.75) / np.linalg.norm(direction, axis=2, keepdims=True)
    direction = np.take_along_axis(direction, np.argsort(-direction[..., 2:], axis=1), axis=1)
    flat = np.array([1.0, 0.85, 1.0])
    rise = np.where(trunk > 0, trunk + 0.85 * crown, 0.55 * crown)
    centre = (place + np.column_stack([0 * rise, rise, 0 * rise]))[:, None] + crown[:, None, None] * direction * flat
    centre[..., 1] = np.maximum(centre[..., 1], 0.1)
    radius = crown[:, None] * g.uniform(0.28, 0.55, (n, blobs))
    leaves = LEAVES[g.integers(len(LEAVES), size=n)][:, None] * (
        1 + 0.45 * direction[..., 1:2] - 0.2 * direction[..., 2:] + 0.13 * g.standard_normal((n, blobs, 1))
    )
    jitter = g.uniform(0.78, 1.2, (n, blobs, CORNERS))
    stage.add(things, discs(centre, np.repeat(radius[..., None], 2, -1), jitter), FACING, leaves.clip(0.02, 1), 1)


def building(stage: Stage, g: np.random.Generator, face: float, near: float, far: float, tall: float) -> None:
    """Adds one building that stands with a side at x = ``face``, from z = ``near`` to ``far``."""
    outward = -np.sign(face)
    deep = 12.0
    things = stage.things("building", [(near + far) / 2], tier=0)
    place = np.array([[face - outward * deep / 2, 0.0, (near + far) / 2]])
    faces, normals = boxes(place, np.array([[deep, tall, far - near]]))
    wall = pick(g, WALLS, 1)
    stage.add(things, faces, normals, wall)
    street = 0 if outward < 0 else 1
    sides = [(faces[0, street], NORMALS[street], far - near), (faces[0, 2], NORMALS[2], deep)]
    pitch, storey = g.uniform(2.2, 3.6), g.uniform(2.9, 3.5)
    wide, low, high = g.uniform(0.35, 0.75), g.uniform(0.25, 0.35), g.uniform(0.7, 0.85)
    glass = GLASS * g.uniform(0.8, 2.2)
    shop = g.random() < 0.45
    for corners, normal, length in sides:
        columns, floors = max(1, int(length / pitch)), max(1, int(tall / storey))
        across = (np.arange(columns + 1) / columns)[:, None]
        up = np.minimum(1.0, np.arange(floors + 1) * storey / tall)
        lower, upper = corners[0] + across * (corners[3] - corners[0]), corners[1] + across * (corners[2] - corners[1])
        grid = lower[:, None] + up[None, :, None] * (upper - lower)[:, None]
        cells = np.stack([grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]], axis=-2)
        panes = inset(cells[:, 1:], wide, low, high)
        shade = glass * g.uniform(0.6, 1.6, (1, *panes.shape[:2], 1))
        stage.add(things, panes[None], normal, shade, 1, casts=False)
        ground = inset(cells[:, :1], 0.86 if shop else wide, 0.06 if shop else low, 0.82 if shop else high)
        front = glass * g.uniform(0.5, 1.8, (1, columns, 1, 1))
        stage.add(things, ground[None], normal, front, 1, casts=False)
        if shop:
            band = inset(np.stack([corners[0], corners[0] + (corners[1] - corners[0]) * storey / tall,
                                   corners[3] + (corners[2] - corners[3]) * storey / tall, corners[3]])[None],
                         0.98, 0.84, 0.98)  # fmt: skip
            stage.add(things, band[None], normal, pick(g, CLOTHES, 1), 2, casts=False)
    if g.random() < 0.55:
        inner = face - outward * 5.0
        rise = g.uniform(2.0, 4.0)
        slope = np.array([[face, tall, near], [inner, tall + rise, near], [inner, tall + rise, far], [face, tall, far]])
        normal = np.array([outward * rise, 5.0, 0.0]) / np.hypot(rise, 5.0)
        stage.add(things, slope[None, None], normal, pick(g, ROOFS, 1), 3)


def fence(stage: Stage, g: np.random.Generator, x: float, near: float, far: float, tall: float) -> None:
    """Adds a fence along the street, of panels between posts."""
    things = stage.things("fence", [(near + far) / 2], tier=0)
    outward = -np.sign(x) * np.array([1.0, 0, 0])
    wall = np.array([[x, 0, near], [x, tall, near], [x, tall, far], [x, 0, far]])
    colour = pick(g, PANEL, 1)
    stage.add(things, wall[None, None], outward, colour)
    columns = max(1, int((far - near) / 0.55))
    z = near + (far - near) * np.arange(columns + 1) / columns
    low, high = np.column_stack([0 * z + x, 0 * z, z]), np.column_stack([0 * z + x, 0 * z + tall, z])
    cells = np.stack([low[:-1], high[:-1], high[1:], low[1:]], axis=1)
    stage.add(things, inset(cells, 0.45, 0.12, 0.93)[None], outward, colour[:, None] * 0.55, 1, casts=False)
