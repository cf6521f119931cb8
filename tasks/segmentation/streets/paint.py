"""Paints a scene as a camera in the street sees it: the image, and the thing at every pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from kdbench.base import rng
from tasks.segmentation.streets.layout import NEAR, VERGE, Street
from tasks.segmentation.streets.shapes import FACING, Polygons, Stage

#: Drawn so many times larger, then averaged.
OVERSAMPLING = 2
#: What is seen without a thing: names of the ground, and the number of each.
GROUND = ("sky", "road", "sidewalk", "terrain")
SKY, ROAD, WALK, TERRAIN = range(4)
#: By label, how strong its texture is, and of how many pixels of the image a grain.
TEXTURE = {
    "road": 0.05, "sidewalk": 0.06, "terrain": 0.14, "building": 0.07, "vegetation": 0.30, "fence": 0.08,
    "person": 0.10, "car": 0.05, "bus": 0.05, "pole": 0.08, "traffic sign": 0.05, "static": 0.10, "sky": 0.01,
}  # fmt: skip
TILE = 256


@dataclass(frozen=True)
class Camera:
    """A pinhole at x = z = 0.

    Attributes:
        height: Of the camera over the ground, metres.
        focal: Focal length, pixels.
        centre: Column of the vanishing point of the street, and row of the horizon.
        size: Height and width of the image, pixels.
    """

    height: float
    focal: float
    centre: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def drawn(cls, g: np.random.Generator, size: tuple[int, int]) -> Camera:
        """Draws a camera as a car has one, which looks about along the street."""
        tall, wide = size
        centre = wide * (0.5 + g.uniform(-0.1, 0.1)), tall * g.uniform(0.40, 0.50)
        return cls(g.uniform(1.25, 1.75), wide * g.uniform(0.85, 1.15), centre, size)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Projects ``(..., 3)`` metres to columns and rows ``(..., 2)``."""
        depth = points[..., 2]
        u = self.centre[0] + self.focal * points[..., 0] / depth
        v = self.centre[1] + self.focal * (self.height - points[..., 1]) / depth
        return np.stack([u, v], axis=-1)

    def on_ground(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Returns the first row below the horizon, and x and z ``(R, W)`` of the ground at the pixels from there on."""
        first = min(self.size[0] - 1, max(0, math.ceil(self.centre[1] + 0.5)))
        rows = np.arange(first, self.size[0]) + 0.5 - self.centre[1]
        z = (self.focal * self.height / rows)[:, None]
        x = (np.arange(self.size[1]) + 0.5 - self.centre[0]) * z / self.focal
        return first, x, np.broadcast_to(z, x.shape)


@dataclass(frozen=True)
class Light:
    """Sun, sky and air.

    Attributes:
        sun: Unit vector towards it.
        strength: Of its light, against that of the sky.
        air: Share of the light that is lost in a metre.
        haze: RGB of the air.
        zenith: RGB of the sky above.
    """

    sun: np.ndarray
    strength: float
    air: float
    haze: np.ndarray
    zenith: np.ndarray

    @classmethod
    def drawn(cls, g: np.random.Generator) -> Light:
        """Draws a day, dull on every third."""
        dull = g.random() < 0.35
        up, around = math.radians(g.uniform(22, 65)), g.uniform(-math.pi, math.pi)
        sun = np.array([math.cos(up) * math.sin(around), math.sin(up), math.cos(up) * math.cos(around)])
        warm = g.uniform(-0.05, 0.05)
        haze = np.array([0.78 + warm, 0.80, 0.83 - warm]) * g.uniform(0.85, 1.1)
        zenith = np.array([0.72, 0.75, 0.79]) if dull else np.array([0.36, 0.54, 0.80])
        return cls(
            np.array([0.08, 0.99, -0.08]) if dull else sun,
            0.12 if dull else g.uniform(0.4, 0.7),
            g.uniform(0.002, 0.010),
            haze.clip(0, 1),
            zenith * g.uniform(0.85, 1.1),
        )

    def lit(self, normals: np.ndarray) -> np.ndarray:
        """Returns the light on surfaces of such normals ``(..., 3)``, of about 1."""
        return (1.02 - self.strength) + 0.10 * normals[..., 1] + 1.15 * self.strength * (normals @ self.sun).clip(0)

    def hazed(self, colours: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Returns colours ``(..., 3)`` as they look at a distance ``(...)``, metres."""
        seen = np.exp(-self.air * depth)[..., None]
        return colours * seen + self.haze * (1 - seen)


def _smooth(g: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Returns smooth noise ``(H, W)`` of variance about 1, with so many cells along the height."""
    tall, wide = size
    across = max(2, round(cells * wide / tall))
    drawn = g.standard_normal((cells, across), dtype=np.float32)
    return np.asarray(Image.fromarray(drawn).resize((wide, tall), Image.Resampling.BICUBIC))


@cache
def _asphalt() -> np.ndarray:
    """Returns a tile of noise that the ground is covered with, the same in all scenes."""
    g = rng.numpy(0, "street ground")
    return (0.6 * g.standard_normal((TILE, TILE)) + np.kron(g.standard_normal((32, 32)), np.ones((8, 8)))) / 1.2


def background(camera: Camera, street: Street, light: Light, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paints sky and ground.

    Returns:
        Colours ``(H, W, 3)`` and which of :data:`GROUND` each pixel is ``(H, W)``.
    """
    tall, wide = camera.size
    kinds = np.full(camera.size, SKY, dtype=np.int32)
    up = (1 - np.arange(tall) / max(camera.centre[1], 1)).clip(0, 1)[:, None, None]
    colours = light.haze + (light.zenith - light.haze) * up**0.7
    clouds = _smooth(g, camera.size, 5) + 0.5 * _smooth(g, camera.size, 12)
    cover = (0.5 + 0.5 * clouds - g.uniform(0, 0.9)).clip(0, 1)[..., None]
    colours = colours + 0.8 * cover * (np.array([0.93, 0.93, 0.94]) * light.haze.mean() * 1.15 - colours)
    first, x, z = camera.on_ground()
    below, shades = _ground(street, x, z, g)
    kinds[first:] = below
    shades = shades * light.lit(np.array([0.0, 1.0, 0.0]))
    colours[first:] = light.hazed(shades, z)
    return colours.astype(np.float32), kinds


def _ground(street: Street, x: np.ndarray, z: np.ndarray, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kind and the colour of the ground at places ``(R, W)``."""
    road = (x > street.left) & (x < street.right)
    walk = ((x > street.left - street.walk_left) & (x < street.right + street.walk_right)) & ~road
    crossing = np.zeros_like(road)
    if street.crossing is not None:
        crossing = (z > street.crossing[0]) & (z < street.crossing[1])
        beside = (z > street.crossing[0] - 2.5) & (z < street.crossing[1] + 2.5) & ~road & ~crossing
        walk, road = (walk & ~crossing) | beside, road | crossing
    for there, edge, sign in zip(street.verges, (street.left, street.right), (-1, 1), strict=True):
        away = sign * (x - edge)
        walk &= ~(there & (away > 0) & (away < VERGE) & (z < street.end))
    road, walk = road & (z < street.end + 8), walk & (z < street.end + 8)
    kinds = np.where(road, ROAD, np.where(walk, WALK, TERRAIN))
    asphalt = g.uniform(0.26, 0.42) * np.array([1.0, 1.0, 1.03])
    paving = g.uniform(0.42, 0.62) * np.array([1.03, 1.0, 0.95])
    grass = np.array([0.24, 0.29, 0.13]) if g.random() < 0.6 else np.array([0.42, 0.36, 0.28])
    table = np.stack([np.ones(3), asphalt, paving, grass])
    colours = table[kinds]
    grain = _asphalt()[(np.abs(x) * 6).astype(int) % TILE, (z * 6).astype(int) % TILE]
    colours = colours * (1 + 0.10 * grain * np.exp(-z / 14))[..., None]
    slabs = ((x * 1.6 % 1 < 0.10) | (z * 1.25 % 1 < 0.09)) & (kinds == WALK) & (z < 22)
    colours = np.where(slabs[..., None], colours * 0.84, colours)
    kerb = ((np.abs(x - street.left) < 0.16) | (np.abs(x - street.right) < 0.16)) & ~crossing & (kinds != TERRAIN)
    colours = np.where(kerb[..., None], colours * 0.55 + 0.30, colours)
    return kinds, np.where(_marks(street, x, z, g)[..., None] & (kinds == ROAD)[..., None], 0.82, colours)


def _marks(street: Street, x: np.ndarray, z: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Returns where the road is painted white: lines between lanes, and stripes before a crossing."""
    along, against = street.lanes
    from_lanes = [-1.6 - 3.2 * i for i in range(against)] + [1.6 + 3.2 * i for i in range(along - 1)]
    dashes = ((z + g.uniform(0, 6)) % 6) < 3.0
    marks = np.zeros_like(x, dtype=bool)
    for line in from_lanes:
        marks |= (np.abs(x - line) < 0.09) & (dashes if line != -1.6 else True)
    if street.crossing is None:
        return marks
    start, stop = street.crossing
    marks &= (z < start - 4) | (z > stop)
    stripes = (z > start - 3.6) & (z < start - 0.5) & (x * 1.1 % 1 < 0.5) & (x > street.left) & (x < street.right)
    return marks | stripes


def _clipped(points: np.ndarray) -> np.ndarray:
    """Cuts off what of a polygon ``(K, 3)`` is nearer than :data:`NEAR` (Sutherland and Hodgman, 1974)."""
    kept = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (NEAR - a[2]) / (b[2] - a[2]) * (b - a))
    return np.array(kept).reshape(-1, 3)


def shadows(camera: Camera, light: Light, groups: list[Polygons]) -> np.ndarray:
    """Returns how much of the sun's light is left on the ground at each pixel ``(H, W)``."""
    mask = Image.new("L", (camera.size[1], camera.size[0]))
    draw = ImageDraw.Draw(mask)
    for group in groups:
        points = group.points[group.casts]
        points = points - (points[..., 1:2] / light.sun[1]) * light.sun
        points[..., 1] = 0.0
        ahead = points[..., 2] > NEAR
        whole = ahead.all(1)
        seen = camera.project(points[whole])
        for corners in seen.reshape(len(seen), 2 * points.shape[1]).tolist():
            draw.polygon(corners, fill=1)
        for corners in points[ahead.any(1) & ~whole]:
            draw.polygon(camera.project(_clipped(corners)).ravel().tolist(), fill=1)
    lost = 0.35 + 0.35 * light.strength
    return 1 - lost * np.asarray(mask, dtype=np.float32)


def paint(stage: Stage, camera: Camera, street: Street, light: Light, g: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Paints a scene, far things first.

    Returns:
        Colours ``(H, W, 3)`` in 0..1 and at each pixel the number of its thing, from :data:`GROUND` on, ``(H, W)``.
    """
    colours, kinds = background(camera, street, light, g)
    groups = stage.merged()
    below = kinds != SKY
    colours[below] *= shadows(camera, light, groups)[below][:, None]
    rank = np.lexsort((-np.array(stage.depths), np.array(stage.tiers))).argsort()
    eye = np.array([0.0, camera.height, 0.0])
    corners, shades, numbers, order = [], [], [], []
    for group in groups:
        middle = group.points.mean(1)
        facing = ((eye - middle) * group.normals).sum(1) > 0
        seen = (facing | (group.normals == FACING).all(1)) & (group.points[..., 2].min(1) >= NEAR)
        flat = camera.project(group.points[seen])
        low, high = flat.min(1), flat.max(1)
        inside = (high > 0).all(1) & (low < [camera.size[1], camera.size[0]]).all(1) & (high - low > 0.3).any(1)
        chosen = np.flatnonzero(seen)[inside]
        corners += flat[inside].reshape(len(chosen), 2 * flat.shape[1]).tolist()
        lit = group.colours[chosen] * light.lit(group.normals[chosen])[:, None]
        shades.append(light.hazed(lit, middle[chosen, 2]))
        numbers.append(group.things[chosen])
        order.append(rank[group.things[chosen]] * 16 + group.parts[chosen])
    table = np.concatenate([np.zeros((1, 3)), *shades]).astype(np.float32)
    thing = np.concatenate([np.zeros(1, dtype=np.int64), *numbers]) + len(GROUND)
    canvas = Image.new("I", (camera.size[1], camera.size[0]))
    draw = ImageDraw.Draw(canvas)
    for index in np.argsort(np.concatenate(order), kind="stable").tolist():
        draw.polygon(corners[index], fill=index + 1)
    painted = np.asarray(canvas)
    there = painted > 0
    numbers_at = np.where(there, thing[painted], kinds)
    colours[there] = table[painted[there]]
    return _textured(stage, colours, numbers_at, g), numbers_at


def _textured(stage: Stage, colours: np.ndarray, numbers: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Roughens surfaces: fine grain and soft patches, as strong as it belongs to what is seen."""
    strength = np.array([TEXTURE[label] for label in (*GROUND, *stage.labels)], dtype=np.float32)[numbers]
    size = colours.shape[:2]
    grain = g.standard_normal((size[0] // 2, size[1] // 2), dtype=np.float32).repeat(2, 0).repeat(2, 1)
    rough = 0.6 * grain + 0.6 * _smooth(g, size, size[0] // 8) + 0.5 * _smooth(g, size, max(2, size[0] // 32))
    return colours * (1 + strength * rough)[..., None]


def film(colours: np.ndarray, g: np.random.Generator) -> np.ndarray:
    """Exposes an image: averages what was drawn larger, then exposure, colour cast, contrast, vignette and noise."""
    tall, wide = (side // OVERSAMPLING for side in colours.shape[:2])
    light = colours.reshape(tall, OVERSAMPLING, wide, OVERSAMPLING, 3).mean((1, 3))
    light = light * g.uniform(0.75, 1.2) * (1 + 0.05 * g.standard_normal(3))
    contrast = g.uniform(0.85, 1.15)
    light = (light.clip(1e-3) / 0.4) ** contrast * 0.4
    rows, columns = np.ogrid[-1 : 1 : tall * 1j, -1 : 1 : wide * 1j]
    light = light * (1 - g.uniform(0, 0.12) * (rows**2 + columns**2))[..., None]
    noise = g.uniform(0.005, 0.022) * g.standard_normal((tall, wide, 3), dtype=np.float32)
    return np.rint(255 * (light + noise).clip(0, 1)).astype(np.uint8)


def majority(numbers: np.ndarray) -> np.ndarray:
    """Returns what most pixels of each block of 2 x 2 show, of equally many the one added last: ``(H, W)``."""
    tall, wide = (side // OVERSAMPLING for side in numbers.shape)
    four = numbers.reshape(tall, 2, wide, 2).transpose(0, 2, 1, 3).reshape(tall, wide, 4)
    votes = (four[..., None] == four[..., None, :]).sum(-1)
    best = (votes * (numbers.max() + 1) + four).argmax(-1)
    return np.take_along_axis(four, best[..., None], -1)[..., 0]
