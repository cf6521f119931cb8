"""Random streets for the LiDAR simulator: what stands where, and the triangles that the rays meet.

A street is laid out in road coordinates (u along the road, v to its left) and delivered in the LiDAR frame. The object
statistics (sizes, distances, headings) follow those of KITTI's labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasks.pointcloud.shapes import GLASS, Shape, shapes

#: Names what the simulator makes, scans and labels: whoever changes that names it anew, and a test holds the two
#: together. It is the digest of the sources that made the scans of the committed records.
REVISION = "b0e322f0e804414f"
SENSOR_HEIGHT = 1.73  # m above the road
CLASSES = ("Car", "Van", "Pedestrian", "Cyclist")
DENSITY: Mapping[str, float] = {"Car": 6.0, "Van": 0.6, "Pedestrian": 2.6, "Cyclist": 2.0}
VIEW = np.radians(39.5)  # objects count as in view up to this azimuth; the image ends near 40.5 degrees
EXTENT = 85.0  # m of street ahead and behind


@dataclass(frozen=True)
class Scene:
    """A street in the LiDAR frame.

    Attributes:
        vertices: (V, 3) float32.
        triangles: (F, 3) uint32 vertex indices.
        owner: (F,) index of the object that a triangle belongs to, -1 for everything else.
        albedo: (F,) reflectance at normal incidence.
        glass: (F,) windows, which reflect few pulses.
        boxes: (N, 7) objects: x, y, z of the centre, l, w, h, yaw.
        types: (N,) KITTI class names.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    owner: np.ndarray
    albedo: np.ndarray
    glass: np.ndarray
    boxes: np.ndarray
    types: np.ndarray


@dataclass(frozen=True)
class _Street:
    yaw: float
    ego: float  # v of the sensor
    half: float  # half width of the road
    pavement: float  # width of each pavement
    kerb: float
    cross: float  # u of a crossing street, infinite where there is none
    cross_half: float
    slope: np.ndarray  # (2,)
    verge: np.ndarray  # (2,) rise per metre beyond the right and the left pavement
    waves: np.ndarray  # (3, 4): wave numbers along u and v, phase, amplitude

    def to_lidar(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns (N, 2) x, y of points on the street."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.column_stack([cos * u - sin * (v - self.ego), sin * u + cos * (v - self.ego)])

    def height(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Returns z of the ground."""
        ku, kv, phase, amplitude = self.waves.T
        waves = (amplitude * np.sin(u[..., None] * ku + v[..., None] * kv + phase)).sum(axis=-1)
        raised = (np.abs(v) > self.half) & (np.abs(u - self.cross) > self.cross_half)
        beyond = np.clip(np.abs(v) - self.half - self.pavement, 0, 15)
        rise = np.where(v < 0, self.verge[0], self.verge[1]) * beyond
        return -SENSOR_HEIGHT + u * self.slope[0] + v * self.slope[1] + waves + self.kerb * raised + rise


def _street(rng: np.random.Generator) -> _Street:
    half = rng.uniform(3.2, 6.0)
    waves = np.column_stack([rng.normal(0, 0.12, (3, 2)), rng.uniform(0, 2 * np.pi, 3), np.full(3, 0.03)])
    return _Street(
        yaw=rng.normal(0, 0.03 if rng.random() < 0.75 else 0.3),
        ego=-min(half / 2, 2.0) + rng.normal(0, 0.2),
        half=half,
        pavement=rng.uniform(1.8, 4.0),
        kerb=rng.uniform(0.06, 0.16),
        cross=rng.uniform(12, 50) if rng.random() < 0.35 else np.inf,
        cross_half=rng.uniform(3.0, 5.0),
        slope=rng.normal(0, [0.008, 0.01]),
        verge=np.maximum(rng.normal(0.01, 0.05, 2), -0.05),
        waves=waves,
    )


_COLUMNS = 8  # of an item: u, v, heading to the road, length, width, height, lift above the ground, albedo


@dataclass
class _Items:
    """Things that may be put on the street, in order of precedence."""

    kinds: list[str]
    rows: list[np.ndarray]

    def add(self, kind: str, *columns: np.ndarray | float) -> None:
        """Adds things of one kind, one per entry of the first column (u); single values hold for all of them."""
        self.kinds += [kind] * len(np.atleast_1d(columns[0]))
        self.rows.append(np.stack(np.broadcast_arrays(*columns), axis=-1).reshape(-1, _COLUMNS))


def _buildings(items: _Items, street: _Street, rng: np.random.Generator) -> None:
    for side in (-1.0, 1.0):
        if rng.random() < 0.15:  # open land on this side
            continue
        length = rng.uniform(8, 26, 14)
        gap = rng.exponential(3.0, 14) * (rng.random(14) < 0.6)
        u = -EXTENT + np.cumsum(length + gap) - length / 2
        setback = street.half + street.pavement + rng.uniform(0.2, 6.0) + np.abs(rng.normal(0, 1.0, 14))
        depth = rng.uniform(6, 10, 14)
        free = np.abs(u - street.cross) - length / 2 > street.cross_half + 2
        columns = (u, side * (setback + depth / 2), 0.0, length, depth, rng.uniform(4, 12, 14), -0.5)
        items.add("building", *(np.broadcast_to(c, 14)[free] for c in columns), rng.uniform(0.15, 0.5, 14)[free])
    if rng.random() < 0.6:  # the street bends or ends ahead
        v = np.array([-24.0, -8.0, 8.0, 24.0]) + rng.uniform(-4, 4)
        u = rng.uniform(45, 75) + rng.normal(0, 1.0, 4)
        width, height = rng.uniform(13, 15.8, 4), rng.uniform(4, 10, 4)
        items.add("building", u, v, 0.0, 8.0, width, height, -0.5, rng.uniform(0.15, 0.5, 4))


def _along(rng: np.random.Generator, count: int, reach: float, near: float, far: float) -> np.ndarray:
    """Distances along the road: the first half ahead within ``reach``, the others anywhere around."""
    ahead = 3 + (reach - 3) * rng.beta(near, far, count)
    around = rng.uniform(-min(reach, 45.0), min(reach, 45.0), count)
    return np.where(np.arange(count) < (count + 1) // 2, ahead, around)


def _vehicles(items: _Items, street: _Street, rng: np.random.Generator, kind: str, wanted: int, reach: float) -> None:
    """Parked rows first, then lanes, forecourts and the crossing street."""
    mean, spread = ((3.88, 1.63, 1.53), (0.42, 0.10, 0.11)) if kind == "Car" else ((5.0, 1.9, 2.15), (0.4, 0.1, 0.2))
    right = rng.random() < 0.6
    edge = street.half - rng.uniform(0.9, 1.2)
    row = np.arange(int(rng.binomial(wanted, 0.5))) * rng.uniform(5.2, 6.8) + rng.uniform(4, max(5.0, reach - 12))
    count = 6 * wanted + 12
    place = rng.choice(5, count, p=[0.28, 0.27, 0.2, 0.15, 0.1])
    u = np.concatenate([row, _along(rng, count, reach, 1.1, 1.2)])
    lane = street.half * rng.uniform(0.3, 0.6, count)
    forecourt = street.half + street.pavement + rng.uniform(0.5, 6.0, count)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    v = np.choose(place, [-lane, lane, side * (street.half - 1.05), side * forecourt, side * rng.uniform(3, 22, count)])
    heading = np.choose(place, [0.0, np.pi, np.where(side > 0, np.pi, 0.0), side * np.pi / 2, side * np.pi / 2])
    heading = heading + np.where(place == 3, rng.choice([0.0, 0.3, np.pi], count), 0) + rng.normal(0, 0.04, count)
    if np.isfinite(street.cross):
        u[len(row) :] = np.where(place == 4, street.cross + side * street.cross_half / 2, u[len(row) :])
    v = np.concatenate([np.full(len(row), -edge if right else edge) + rng.normal(0, 0.12, len(row)), v])
    heading = np.concatenate([rng.normal(0.0 if right else np.pi, 0.03, len(row)), heading])
    size = np.maximum(rng.normal(mean, spread, (len(u), 3)), np.array(mean) * 0.82)
    paint = rng.choice([0.05, 0.1, 0.25, 0.5], len(u), p=[0.3, 0.25, 0.25, 0.2]) * rng.uniform(0.7, 1.3, len(u))
    items.add(kind, u, v, heading, *size.T, 0.0, paint)


def _people(items: _Items, street: _Street, rng: np.random.Generator, kind: str, wanted: int, reach: float) -> None:
    walking = kind == "Pedestrian"
    count = 4 * wanted + 12
    u = _along(rng, count, reach, 1.3, 2.0)
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    pavement = street.half + rng.uniform(0.4, max(0.5, street.pavement - 0.2), count)
    road = (street.half - 0.9) * rng.uniform(-1, 1, count)
    fringe = side * (street.half - rng.uniform(0.5, 1.3, count))
    beyond = street.half + street.pavement + rng.uniform(0, 5, count)
    place = rng.choice(4, count, p=[0.6, 0.18, 0.08, 0.14] if walking else [0.25, 0.15, 0.55, 0.05])
    v = np.choose(place, [side * pavement, road, fringe, side * beyond])
    along = np.where(rng.random(count) < 0.5, 0.0, np.pi) if walking else np.where(side < 0, 0.0, np.pi)
    crossing = (place == 1) & (rng.random(count) < 0.7)
    heading = np.where(crossing, side * np.pi / 2, along) + rng.normal(0, 0.25 if walking else 0.1, count)
    if walking:
        any_way = rng.random(count) < 0.2
        heading = np.where(any_way, rng.uniform(-np.pi, np.pi, count), heading)
        company = 2 * np.flatnonzero(rng.random(count // 2) < 0.35) + 1  # these walk beside the one before
        u[company] = u[company - 1] + rng.normal(0, 0.15, len(company))
        v[company] = v[company - 1] + rng.choice([-1, 1], len(company)) * rng.uniform(0.75, 1.0, len(company))
        heading[company] = heading[company - 1]
    natural = np.array([shape.size for shape in shapes(kind)])[rng.integers(len(shapes(kind)), size=count)]
    scale = np.clip(rng.normal(1.0, 0.055, (count, 1)), 0.8, 1.15)
    slack = [1.12, 1.0, 1.0] if walking else [1.02, 1.08, 0.99]  # people draw a little wide
    size = natural * scale * rng.normal(slack, [0.05, 0.04, 0.01], (count, 3))
    items.add(kind, u, v, heading, *size.T, 0.0, rng.uniform(0.12, 0.65, count))


_Sizes = tuple[tuple[float, float], ...]  # lowest and highest length, width and height


def _furniture(items: _Items, street: _Street, rng: np.random.Generator) -> None:
    """Poles, trees, hedges and the things that look like people from afar."""

    def spots(mean: float, near: float, far: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns u and v of things beside the road, ``near`` to ``far`` metres from the kerb."""
        count = rng.poisson(mean)
        side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
        u = np.where(rng.random(count) < 0.65, rng.uniform(4, 65, count), rng.uniform(-60, 4, count))
        return u, side * (street.half + rng.uniform(near, far, count))

    deep = street.pavement + 8

    def scatter(kind: str, mean: float, near: float, far: float, sizes: _Sizes, albedo: tuple[float, float]) -> None:
        u, v = spots(mean, near, far)
        low, high = np.array(sizes).T
        size = low + (high - low) * rng.random((len(u), 3))
        turn = rng.normal(0, 0.05, len(u)) if kind == "hedge" else rng.uniform(-np.pi, np.pi, len(u))
        items.add(kind, u, v, turn, *size.T, 0.0, rng.uniform(*albedo, size=len(u)))

    street_side, paint, leaf = street.pavement, (0.1, 0.5), (0.2, 0.55)
    scatter("pole", 6, 0.3, 0.8, ((0.12, 0.25), (0.12, 0.25), (4, 9)), (0.2, 0.5))
    scatter("sign", 4, 0.2, 0.9, ((0.1, 0.12), (0.4, 0.8), (1.7, 2.6)), (0.5, 1.0))
    scatter("pole", 3, 0.2, street_side, ((0.25, 0.6), (0.25, 0.6), (1.3, 2.0)), paint)  # thick posts, columns
    scatter("pole", 4, 0.1, 0.5, ((0.1, 0.25), (0.1, 0.25), (0.7, 1.2)), paint)  # bollards
    scatter("box", 4, 0.3, deep, ((0.4, 0.8), (0.4, 0.8), (1.0, 1.8)), paint)  # bins, cabinets
    scatter("box", 1, 0.5, deep, ((2, 5), (1.5, 2.2), (1.0, 2.4)), paint)  # skips, sheds
    scatter("crown", 5, 0.5, deep, ((0.5, 0.9), (0.5, 0.9), (1.4, 2.0)), leaf)  # shrubs as tall as a person
    scatter("crown", 6, 0.8, deep, ((0.8, 3), (0.8, 3), (0.6, 2.0)), leaf)
    scatter("crown", rng.uniform(6, 50), 1.0, deep, ((2, 7), (2, 7), (2.5, 7)), leaf)  # thickets
    scatter("crown", 14, deep, 40, ((4, 9), (4, 9), (5, 12)), leaf)  # woods behind
    scatter("hedge", 5, street_side, deep, ((4, 14), (0.6, 1.2), (0.8, 2.2)), leaf)
    scatter("box", 3, street_side, deep, ((5, 15), (0.15, 0.25), (0.8, 2.0)), paint)  # garden walls
    scatter("bicycle", 2, 0.3, street_side, ((1.7, 1.8), (0.5, 0.55), (1.0, 1.1)), paint)
    u, v = spots(14, 0.4, deep)
    height, width = rng.uniform(4, 9, len(u)), rng.uniform(0.2, 0.6, len(u))
    items.add("pole", u, v, 0.0, width, width, height, 0.0, rng.uniform(0.15, 0.4, len(u)))
    crown = rng.uniform(2.5, 6, len(u))
    lift = height - rng.uniform(1.5, 2.2, len(u))
    items.add("canopy", u, v, 0.0, crown, crown, crown, lift, rng.uniform(*leaf, size=len(u)))


def _overlaps(centre: np.ndarray, yaw: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Returns the (N, N) mask of footprints that meet, by the separating-axis test."""
    axes = np.stack([np.column_stack([np.cos(yaw), np.sin(yaw)]), np.column_stack([-np.sin(yaw), np.cos(yaw)])], axis=1)
    half = size / 2
    distance = np.abs(np.einsum("nad,nmd->nma", axes, centre[None] - centre[:, None]))
    radius = np.abs(np.einsum("nad,mbd->nmab", axes, axes)) @ half[None, :, :, None]
    meets = (distance < radius[..., 0] + half[:, None]).all(axis=-1)
    return meets & meets.T


def _accept(
    kinds: list[str],
    rows: np.ndarray,
    xy: np.ndarray,
    quota: dict[tuple[str, bool], int],
    max_distance: float,
    lateral: float,
) -> list[int]:
    """Returns the items that find room, in order of precedence and no more than ``quota`` of each class and zone."""
    x, y = xy.T
    ahead = (x > 2) & (np.abs(np.arctan2(y, x)) < VIEW)
    inside = (np.abs(x) <= max_distance) & (np.abs(y) <= lateral)
    meets = _overlaps(rows[:, :2], rows[:, 2], rows[:, 3:5] + 0.2)
    plants, canopies = np.isin(kinds, ["crown", "hedge"]), np.isin(kinds, ["canopy"])
    meets[plants] = meets[:, canopies] = False  # plants grow into each other and on walls, canopies above everything
    meets[np.ix_(~np.isin(kinds, [*CLASSES, "own car"]), plants)] = False
    blocked = np.zeros(len(kinds), dtype=bool)
    accepted: list[int] = []
    for i, kind in enumerate(kinds):
        if blocked[i]:
            continue
        if kind in CLASSES:
            zone = (kind, bool(ahead[i]))
            if not inside[i] or quota[zone] == 0:
                continue
            quota[zone] -= 1
        blocked |= meets[i]
        accepted.append(i)
    return accepted


def _ground(street: _Street, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns vertices (V, 3), triangles (F, 3) and albedo (F,) of road, kerbs, pavements and verges."""
    kerbs = np.array([street.half, street.half + 0.02, street.half + street.pavement])
    u = EXTENT * np.sinh(np.linspace(-3.6, 3.6, 96)) / np.sinh(3.6)
    if np.isfinite(street.cross):
        ends = street.cross + np.array([-1, 1]) * street.cross_half
        u = np.sort(np.concatenate([u, ends - 0.02, ends + 0.02]))
    v = np.sort(np.concatenate([kerbs, -kerbs, 70 * np.sinh(np.linspace(-3, 3, 52)) / np.sinh(3)]))
    grid_u, grid_v = np.meshgrid(u, v, indexing="ij")
    z = street.height(grid_u, grid_v) + rng.normal(0, 0.012, grid_u.shape)
    vertices = np.column_stack([street.to_lidar(grid_u.ravel(), grid_v.ravel()), z.ravel()])
    corner = np.arange(grid_u.size).reshape(grid_u.shape)
    a, b, c, d = corner[:-1, :-1].ravel(), corner[1:, :-1].ravel(), corner[1:, 1:].ravel(), corner[:-1, 1:].ravel()
    triangles = np.concatenate([np.column_stack([a, b, c]), np.column_stack([a, c, d])])
    across = np.abs((grid_v[:-1, :-1] + grid_v[1:, 1:]).ravel() / 2)
    road, pavement, verge = rng.uniform(0.32, 0.48), rng.uniform(0.35, 0.5), rng.uniform(0.4, 0.6)
    strip = np.where(across < street.half, road, np.where(across < street.half + street.pavement, pavement, verge))
    return vertices, triangles, np.tile(strip * rng.normal(1, 0.06, len(strip)), 2)


_SHAPE_OF = {"canopy": "crown", "building": "box"}


def build(
    rng: np.random.Generator,
    *,
    density: Mapping[str, float] = DENSITY,
    max_distance: float = 60.0,
    lateral: float = np.inf,
) -> Scene:
    """Draws a street.

    Args:
        rng: The frame's random numbers.
        density: Mean number of objects of each class in the camera's view; about as many again stand elsewhere.
        max_distance: Objects of the labelled classes have |x| at most this, in metres.
        lateral: They have |y| at most this, in metres.
    """
    street = _street(rng)
    items = _Items(["own car"], [np.array([[1.5, street.ego, 0, 10, 2.2, 1.5, 0, 0]])])
    _buildings(items, street, rng)
    quota: dict[tuple[str, bool], int] = {}
    for kind in ("Car", "Van", "Cyclist", "Pedestrian"):
        wanted = int(rng.poisson(density[kind]))
        quota[kind, True] = wanted
        quota[kind, False] = int(rng.poisson(density[kind] / 2))
        candidates = _vehicles if kind in ("Car", "Van") else _people
        candidates(items, street, rng, kind, wanted, max_distance)
    _furniture(items, street, rng)

    kinds, rows = items.kinds, np.concatenate(items.rows)
    xy = street.to_lidar(rows[:, 0], rows[:, 1])
    z = street.height(rows[:, 0], rows[:, 1]) + rows[:, 6]
    accepted = _accept(kinds, rows, xy, quota, max_distance, lateral)[1:]  # all but the own car

    vertices, triangles, albedo = _ground(street, rng)
    meshes, faces, albedos = [vertices], [triangles], [albedo]
    owners, windows = [np.full(len(triangles), -1)], [np.zeros(len(triangles), dtype=bool)]
    boxes: list[list[float]] = []
    types: list[str] = []
    offset = len(vertices)
    for i in accepted:
        kind = kinds[i]
        variants = shapes(_SHAPE_OF.get(kind, kind))
        shape: Shape = variants[rng.integers(len(variants))]
        size, yaw, bottom = rows[i, 3:6], rows[i, 2] + street.yaw, np.array([*xy[i], z[i]])
        labelled = kind in CLASSES
        slack = np.array([0.94, 0.94, 1.0]) if kind == "Pedestrian" else np.ones(3)  # KITTI's boxes are loose there
        meshes.append(shape.place(size * slack, yaw, bottom))
        faces.append(shape.triangles + offset)
        offset += len(shape.vertices)
        by_part = rows[i, 7] * np.array([1.0, 0.5, 0.3, rng.uniform(0.4, 1.3)])
        albedos.append(by_part[shape.part])
        windows.append(shape.part == GLASS)
        owners.append(np.full(len(shape.part), len(boxes) if labelled else -1))
        if labelled:
            boxes.append([*xy[i], z[i] + size[2] / 2, *size, (yaw + np.pi) % (2 * np.pi) - np.pi])
            types.append(kind)
    return Scene(
        vertices=np.concatenate(meshes).astype(np.float32),
        triangles=np.concatenate(faces).astype(np.uint32),
        owner=np.concatenate(owners),
        albedo=np.concatenate(albedos),
        glass=np.concatenate(windows),
        boxes=np.array(boxes).reshape(-1, 7),
        types=np.array(types, dtype=np.str_),
    )
