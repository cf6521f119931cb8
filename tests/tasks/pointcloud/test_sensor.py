from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("open3d", reason="the simulator needs Open3D: pip install 'kdbench[pointcloud]'")

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud.hdl64 import ELEVATIONS
from tasks.pointcloud.scene import Scene
from tasks.pointcloud.sensor import OWN_CAR, scan
from tasks.pointcloud.shapes import shapes


def scene_of(*boxes: tuple[float, ...], owners: tuple[int, ...], glass: bool = False, albedo: float = 0.5) -> Scene:
    """Plain boxes (x, y, z of the bottom, l, w, h); those with an owner of 0 or more are objects."""
    shape = shapes("box")[0]
    meshes = [shape.place(np.array(box[3:]), 0.0, np.array(box[:3])) for box in boxes]
    faces = [shape.triangles + i * len(shape.vertices) for i in range(len(boxes))]
    count = len(shape.triangles)
    objects = [box for box, owner in zip(boxes, owners, strict=True) if owner >= 0]
    return Scene(
        vertices=np.concatenate(meshes).astype(np.float32),
        triangles=np.concatenate(faces).astype(np.uint32),
        owner=np.repeat(owners, count),
        albedo=np.full(count * len(boxes), albedo),
        glass=np.full(count * len(boxes), glass),
        boxes=np.array([[*box[:2], box[2] + box[5] / 2, *box[3:], 0.0] for box in objects]).reshape(-1, 7),
        types=np.array(["Car"] * len(objects)),
    )


def test_wall_is_where_it_stands():
    points = scan(scene_of((20.5, 0, -3, 1, 200, 100), owners=(-1,)), rng.numpy(0, "test")).points
    x = points[:, 0].astype(np.float64)
    assert abs(np.median(x) - 20) < 0.01
    direction = points[:, :3] / np.linalg.norm(points[:, :3], axis=1, keepdims=True)
    noise = (x - 20) / direction[:, 0]
    noise = noise[np.abs(noise) < 0.2]
    assert 0.015 < noise.std() < 0.025


def test_rings_run_from_top_to_bottom_and_counter_clockwise():
    room = scene_of((0, 0, -3, 60, 60, 30), owners=(-1,))
    points = scan(room, rng.numpy(0, "test")).points
    azimuth = np.arctan2(points[:, 1], points[:, 0]) % (2 * np.pi)
    ring = np.concatenate([[0], np.cumsum(np.diff(azimuth) < -np.pi)])
    assert ring[-1] == 63
    elevation = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    measured = np.array([np.median(elevation[ring == i]) for i in range(64)])
    assert np.abs(measured - ELEVATIONS).max() < 0.2


def test_own_car_hides_what_lies_under_it():
    points = scan(scene_of((0, 0, -2.73, 150, 150, 1), owners=(-1,)), rng.numpy(0, "test")).points
    rear, front, right, left, top = OWN_CAR
    at_roof = points[:, :2] * (top / points[:, 2:3])  # where the beam passes the height of the own car's roof
    covered = (at_roof > [rear + 0.1, right + 0.1]) & (at_roof < [front - 0.1, left - 0.1])
    assert len(points) > 20_000
    assert not covered.all(axis=1).any()


def test_visible_share_and_returns():
    alone = (20.0, 0.0, -1.7, 4.0, 4.0, 1.7)
    half = (10.0, -2.0, -1.7, 0.1, 4.0, 3.0)  # seen from the sensor, it covers the right half
    free = scan(scene_of(alone, owners=(0,)), rng.numpy(0, "test"), full_sweep=False)
    assert free.visible.tolist() == [1.0]
    behind = scan(scene_of(alone, half, owners=(0, -1)), rng.numpy(0, "test"), full_sweep=False)
    assert 0.4 < behind.visible[0] < 0.6
    hits = ((np.abs(free.points[:, :3] - [20, 0, -0.85]) < [2.2, 2.2, 1]).all(axis=1)).sum()
    assert hits == free.returns[0]
    assert 0.35 < behind.returns[0] / free.returns[0] < 0.65
    hidden = scan(scene_of(alone, (5, 0, -3, 0.1, 20, 10), owners=(0, -1)), rng.numpy(0, "test"), full_sweep=False)
    assert hidden.visible.tolist() == [0.0]
    assert hidden.returns.tolist() == [0]


def test_an_object_in_front_hides_another():
    near, far = (10.0, 0.0, -1.7, 1.0, 6.0, 2.5), (25.0, 0.0, -1.7, 1.0, 6.0, 2.5)
    result = scan(scene_of(near, far, owners=(0, 1)), rng.numpy(0, "test"), full_sweep=False)
    assert result.visible[0] == 1
    assert result.visible[1] < 0.05


KINDS: tuple[dict[str, Any], ...] = ({}, {"glass": True}, {"albedo": 0.03})


def test_glass_and_dark_surfaces_return_less():
    wall = (20.5, 0.0, -3.0, 1.0, 200.0, 100.0)
    plain, glass, dark = (
        scan(scene_of(wall, owners=(-1,), **kind), rng.numpy(0, "test"), full_sweep=False).points for kind in KINDS
    )
    assert len(glass) < 0.45 * len(plain)
    assert 0.6 * len(plain) < len(dark) < 0.9 * len(plain)
    assert np.mean(dark[:, 3]) < 0.1 < np.mean(plain[:, 3])


def test_empty_view():
    away = (-20.0, 0.0, -1.7, 4.0, 4.0, 1.7)
    result = scan(scene_of(away, owners=(0,)), rng.numpy(0, "test"), full_sweep=False)
    assert result.points.shape == (0, 4)
    assert result.visible.tolist() == [0.0]


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(KDBenchError, match=r"needs Open3D.*pip install 'kdbench\[pointcloud\]'"):
        scan(scene_of((20, 0, 0, 1, 1, 1), owners=(-1,)), rng.numpy(0, "test"))
