from __future__ import annotations

import numpy as np
import pytest

from kdbench.base import rng
from tasks.pointcloud.scene import CLASSES, SENSOR_HEIGHT, _overlaps, build
from tasks.pointcloud.shapes import GLASS, shapes


@pytest.mark.parametrize("kind", [*CLASSES, "bicycle", "pole", "sign", "crown", "hedge", "box"])
def test_shapes_fill_the_unit_box(kind):
    for shape in shapes(kind):
        np.testing.assert_allclose(shape.vertices.min(axis=0), [-0.5, -0.5, 0], atol=1e-12)
        np.testing.assert_allclose(shape.vertices.max(axis=0), [0.5, 0.5, 1], atol=1e-12)
        assert shape.triangles.max() < len(shape.vertices)
        assert len(shape.part) == len(shape.triangles)
        assert (shape.part == GLASS).any() == (kind in ("Car", "Van"))


def test_shapes_have_kitti_sizes():
    mean = {kind: np.mean([shape.size for shape in shapes(kind)], axis=0) for kind in CLASSES}
    np.testing.assert_allclose(mean["Car"], [3.88, 1.63, 1.53], atol=0.1)
    np.testing.assert_allclose(mean["Pedestrian"], [0.84, 0.66, 1.76], atol=0.2)
    np.testing.assert_allclose(mean["Cyclist"], [1.76, 0.60, 1.74], atol=0.1)


def test_place():
    shape = shapes("box")[0]
    placed = shape.place(np.array([4.0, 2.0, 1.5]), np.pi / 2, np.array([10.0, 5.0, -1.7]))
    np.testing.assert_allclose(placed.min(axis=0), [9, 3, -1.7], atol=1e-12)
    np.testing.assert_allclose(placed.max(axis=0), [11, 7, -0.2], atol=1e-12)


def test_overlaps_against_shapely():
    shapely = pytest.importorskip("shapely")
    random = np.random.default_rng(0)
    centre, yaw, size = random.uniform(0, 12, (60, 2)), random.uniform(-4, 4, 60), random.uniform(0.3, 5, (60, 2))
    polygons = []
    for (x, y), turn, (length, width) in zip(centre, yaw, size, strict=True):
        rectangle = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
        turned = shapely.affinity.rotate(rectangle, turn, origin=(0, 0), use_radians=True)
        polygons.append(shapely.affinity.translate(turned, x, y))
    expected = np.array([[a.intersects(b) for b in polygons] for a in polygons])
    assert 0.05 < expected.mean() < 0.6
    assert np.array_equal(_overlaps(centre, yaw, size), expected)


def test_build_gives_each_object_its_triangles():
    scene = build(rng.numpy(0, "test"))
    count = len(scene.boxes)
    assert count == len(scene.types) > 0
    assert set(np.unique(scene.owner)) == set(range(-1, count))
    assert len(scene.owner) == len(scene.triangles) == len(scene.albedo) == len(scene.glass)
    assert scene.triangles.max() < len(scene.vertices)
    for index, box in enumerate(scene.boxes):
        vertices = scene.vertices[np.unique(scene.triangles[scene.owner == index])] - box[:3]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        local = np.column_stack([vertices @ [cos, sin, 0], vertices @ [-sin, cos, 0], vertices[:, 2]])
        assert (np.abs(local).max(axis=0) <= box[3:6] / 2 + 1e-4).all()
        assert (np.abs(local).max(axis=0) >= 0.9 * box[3:6] / 2).all()


def test_streets_differ_and_the_sensor_stands_on_the_road():
    scenes = [build(rng.numpy(0, "test", n)) for n in range(8)]
    below = []
    for scene in scenes:
        ground = scene.vertices[np.linalg.norm(scene.vertices[:, :2], axis=1) < 3]
        below.append(ground[:, 2].min())
    np.testing.assert_allclose(below, -SENSOR_HEIGHT, atol=0.25)
    assert len({len(scene.boxes) for scene in scenes}) > 3
    assert len({scene.boxes.tobytes() for scene in scenes}) == 8
