"""The simulated LiDAR: an HDL-64E that meets the triangles of a scene by ray casting (Open3D on Embree)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kdbench.errors import KDBenchError
from tasks.pointcloud.hdl64 import AZIMUTH_STEPS, ELEVATIONS, RETURNS
from tasks.pointcloud.scene import Scene

MAX_RANGE = 80.0  # m
FRONT = np.radians(46.0)  # the camera's view with a margin
RANGE_NOISE = 0.02  # m
BEAM_JITTER = np.radians(0.02)
OWN_CAR = (-2.6, 2.0, -0.9, 0.9, -0.9)  # m: rear, front, right, left and height of the part that the beams graze

# The fullest ring shows how often the sensor fires. What the top rings miss is the sky, which the scene has of itself.
FIRINGS = round(AZIMUTH_STEPS * max(RETURNS))
_RING_SHARE = np.where(np.arange(len(RETURNS)) < 11, 1.0, RETURNS) / max(RETURNS)


@dataclass(frozen=True)
class Scan:
    """One revolution.

    Attributes:
        points: (N, 4) float32 x, y, z in steps of 1 mm, reflectance in steps of 0.01; ring after ring, top to bottom.
        returns: (M,) points on each object of the scene.
        visible: (M,) share of the rays towards each object, among those in the camera's view, that nothing else
            stops; 0 where no ray meets it.
    """

    points: np.ndarray
    returns: np.ndarray
    visible: np.ndarray


def _directions(rng: np.random.Generator, full_sweep: bool) -> np.ndarray:
    """Returns (64, S, 3) float32 unit vectors; each ring starts ahead and turns counter-clockwise."""
    azimuth = (np.arange(FIRINGS) + rng.random()) * (2 * np.pi / FIRINGS)
    if not full_sweep:
        azimuth = azimuth[np.cos(azimuth) > np.cos(FRONT)]
    elevation = np.radians(ELEVATIONS)[:, None] + rng.normal(0, BEAM_JITTER, (len(ELEVATIONS), 1))
    azimuth = azimuth + rng.normal(0, BEAM_JITTER, (len(ELEVATIONS), len(azimuth)))
    flat = np.cos(elevation)
    up = np.broadcast_to(np.sin(elevation), azimuth.shape)
    return np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), up], axis=-1).astype(np.float32)


def _meets_own_car(directions: np.ndarray) -> np.ndarray:
    """Returns the mask of beams (..., 3) that end on the car below the sensor."""
    rear, front, right, left, top = OWN_CAR
    with np.errstate(divide="ignore"):
        reach = top / directions[..., 2]
    x, y = reach * directions[..., 0], reach * directions[..., 1]
    return (directions[..., 2] < 0) & (x > rear) & (x < front) & (y > right) & (y < left)


def _caster(vertices: np.ndarray, triangles: np.ndarray) -> Any:
    try:
        import open3d
    except ImportError as error:
        raise KDBenchError(
            f"the LiDAR simulator needs Open3D, which cannot be imported ({error}); pip install 'kdbench[pointcloud]', "
            "or point data.root at a folder in KITTI's layout"
        ) from None
    caster = open3d.t.geometry.RaycastingScene(nthreads=1)
    caster.add_triangles(open3d.core.Tensor.from_numpy(vertices), open3d.core.Tensor.from_numpy(triangles))
    return caster


def _visible(scene: Scene, rays: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Returns each object's unobstructed share of ``rays`` (R, 6), which meet the owners ``first`` (R,) first."""
    count = len(scene.boxes)
    owned = scene.owner >= 0
    if not owned.any():
        return np.zeros(0)
    hits = _caster(scene.vertices, scene.triangles[owned]).list_intersections(rays, nthreads=1)
    owner = scene.owner[owned][hits["primitive_ids"].numpy()]
    pairs = np.unique(hits["ray_ids"].numpy().astype(np.int64) * count + owner)
    towards = np.bincount(pairs % count, minlength=count)
    reached = np.bincount(first[first >= 0], minlength=count)
    return np.divide(reached, towards, out=np.zeros(count), where=towards > 0)


def _mix_edges(distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves some returns at depth edges (64, S) towards the next ray's: one pulse that meets two surfaces."""
    following = np.roll(distance, -1, axis=1)
    edge = np.isfinite(distance) & np.isfinite(following)
    edge[edge] = np.abs(following[edge] - distance[edge]) > 0.5
    edge &= rng.random(distance.shape, dtype=np.float32) < 0.12
    mixed = distance.copy()
    mixed[edge] += rng.random(int(edge.sum())) * (following[edge] - distance[edge])
    return mixed


def scan(scene: Scene, rng: np.random.Generator, full_sweep: bool = True) -> Scan:
    """Scans a scene once, over 360 degrees or only towards the camera's view.

    Raises:
        KDBenchError: where Open3D is not installed.
    """
    directions = _directions(rng, full_sweep)
    rings, steps = directions.shape[:2]
    flat = directions.reshape(-1, 3)
    rays = np.concatenate([np.zeros_like(flat), flat], axis=1)
    caster = _caster(scene.vertices, scene.triangles)
    hits = caster.cast_rays(rays, nthreads=1)
    distance = hits["t_hit"].numpy().astype(np.float64)
    triangle = hits["primitive_ids"].numpy()
    hit = np.isfinite(distance)
    triangle = np.where(hit, triangle, 0)
    cosine = np.abs((hits["primitive_normals"].numpy() * flat).sum(axis=1))
    owner = np.where(hit, scene.owner[triangle], -1)
    front = flat[:, 0] > np.cos(FRONT)
    visible = _visible(scene, rays[front], owner[front])

    albedo = scene.albedo[triangle] * np.exp(rng.normal(0, 0.25, len(flat)))
    lost = 0.01 + 0.45 * np.clip((distance - 50) / 30, 0, 1) + 0.4 * np.clip(1 - cosine / 0.03, 0, 1)
    lost += 0.35 * np.clip(1 - albedo / 0.1, 0, 1) + np.where(scene.glass[triangle], 0.7, 0.0)
    ring_share = np.repeat(_RING_SHARE, steps)
    kept = hit & (rng.random(len(flat)) < ring_share * (1 - np.minimum(lost, 0.95)))
    kept &= ~_meets_own_car(flat)

    measured = _mix_edges(distance.reshape(rings, steps), rng).ravel() + rng.normal(0, RANGE_NOISE, len(flat))
    kept &= measured < MAX_RANGE
    brightness = albedo * cosine**0.25
    dark = rng.random(len(flat)) < 0.06 + np.clip(0.9 - 5 * brightness, 0, 0.9)
    reflectance = np.where(dark, 0.0, np.clip(brightness, 0.0, 0.99))
    points = np.column_stack([np.round(flat * measured[:, None], 3), np.round(reflectance, 2)])[kept]
    returns = np.bincount(owner[kept & (owner >= 0)], minlength=len(scene.boxes))
    return Scan(points.astype(np.float32), returns, visible)
