from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti, scans
from tasks.pointcloud.database import Database, points_in_boxes
from tasks.pointcloud.transforms import (
    Transforms,
    accept,
    crop,
    draw,
    fit_ground,
    flip,
    ground_height,
    overlap_bev,
    paste,
    rotate,
    scale,
)

CLASSES = ["Car", "Pedestrian", "Cyclist"]
PLAIN = Transforms(flip=0.0, rotation=(0.0, 0.0), scale=(1.0, 1.0))
SIZES = {"Car": (3.9, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.7), "Cyclist": (1.8, 0.6, 1.7)}


def seeds(test: Any) -> Any:
    """Runs a test for forty seeds, the same each time, however long it takes."""
    return settings(max_examples=40, deadline=None, derandomize=True)(given(seed=st.integers(0, 2**32 - 1))(test))


def polygons(boxes: np.ndarray) -> np.ndarray:
    """Built without the code under test."""
    unit = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    found = []
    for x, y, _, length, width, _, yaw in boxes.tolist():
        turn = np.array([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
        found.append(shapely.Polygon((unit * [length, width]) @ turn.T + [x, y]))
    return np.array(found, dtype=object)


def shared_area(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return shapely.area(shapely.intersection(polygons(a)[:, None], polygons(b)[None]))


def random_boxes(n: int, g: np.random.Generator, spread: float = 30.0) -> np.ndarray:
    centre = g.uniform([0, -spread / 2, -1.2], [spread, spread / 2, -0.6], (n, 3))
    yaw = g.uniform(-3, 3, n)
    yaw[::3] = np.floor(yaw[::3] / (math.pi / 2)) * (math.pi / 2)  # parallel sides
    return np.column_stack([centre, g.uniform(0.4, 5, (n, 3)), yaw]).astype(np.float32)


def fill(boxes: np.ndarray, each: int, g: np.random.Generator, share: float = 0.95) -> np.ndarray:
    """``each`` points inside every box, within ``share`` of its size."""
    local = g.uniform(-share / 2, share / 2, (len(boxes), each, 3)) * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x, y = local[..., 0] * cos - local[..., 1] * sin, local[..., 0] * sin + local[..., 1] * cos
    xyz = np.stack([x, y, local[..., 2]], -1) + boxes[:, None, :3]
    cloud = np.concatenate([xyz, g.uniform(0, 1, (*xyz.shape[:2], 1))], -1)
    return cloud.reshape(-1, 4).astype(np.float32)


def road(g: np.random.Generator, n: int = 6000, slope: tuple[float, float] = (0.0, 0.0), z: float = -1.7) -> np.ndarray:
    """Ground with 2 cm roughness and, above a quarter of it, things that stand there."""
    xy = g.uniform([0, -20], [40, 20], (n, 2))
    height = z + xy @ np.array(slope) + g.normal(0, 0.02, n)
    clutter = (xy[:, 1] > 10) & (g.uniform(size=n) < 0.9)
    height[clutter] += g.uniform(0, 3, clutter.sum())
    return np.column_stack([xy, height, g.uniform(0, 1, n)]).astype(np.float32)


def make_database(g: np.random.Generator, each: int = 40, spread: float = 40.0) -> Database:
    """Objects far apart in frames of their own, so that none shares points with another."""
    frames = []
    for index, name in enumerate(CLASSES * each):
        x, y = g.uniform([3, -spread / 2], [spread, spread / 2])
        box = np.array([[x, y, g.uniform(-1.2, -0.8), *SIZES[name], g.uniform(-3, 3)]])
        frames.append((f"{index:06}", fill(box, 20, g), box, [name], np.array([0])))
    return Database.build(frames).filter(CLASSES)


def plane_of(points: np.ndarray) -> np.ndarray:
    plane = fit_ground(points)
    assert plane is not None
    return plane


def inside_pairs(points: np.ndarray, boxes: np.ndarray) -> set[tuple[int, int]]:
    point, box = points_in_boxes(points, boxes)
    return set(zip(point.tolist(), box.tolist(), strict=True))


# ---- collision test


@seeds
def test_overlap_agrees_with_polygons(seed: int) -> None:
    g = np.random.default_rng(seed)
    a, b = random_boxes(12, g, spread=12), random_boxes(9, g, spread=12)
    area = shared_area(a, b)
    clear = (area == 0) | (area > 1e-4)  # a corner that only just reaches in is rounding
    assert np.array_equal(overlap_bev(a, b)[clear], area[clear] > 0)
    assert clear.mean() > 0.9


def test_overlap_needs_all_four_directions() -> None:
    base = np.array([[0.0, 0, 0, 4, 2, 1, 0]])
    turned = np.array([[0.0, 0, 0, 4, 2, 1, math.pi / 4]])
    # Their upright rectangles meet, the boxes do not.
    away = turned + [[3.0, 3, 0, 0, 0, 0, 0]]
    assert shared_area(base, away)[0, 0] == 0
    assert not overlap_bev(base, away)[0, 0]
    assert not overlap_bev(away, base)[0, 0]
    assert overlap_bev(base, turned + [[2.5, 2.5, 0, 0, 0, 0, 0]])[0, 0]


def test_touching_boxes_do_not_overlap_and_identical_ones_do() -> None:
    box = np.array([[0.0, 0, 0, 4, 2, 1, 0]])
    assert not overlap_bev(box, box + [[4, 0, 0, 0, 0, 0, 0]])[0, 0]
    assert not overlap_bev(box, box + [[0, 2, 0, 0, 0, 0, 0]])[0, 0]
    assert overlap_bev(box, box)[0, 0]
    assert overlap_bev(box, np.empty((0, 7))).shape == (1, 0)


@seeds
def test_accept_is_the_greedy_loop(seed: int) -> None:
    g = np.random.default_rng(seed)
    candidates, existing = random_boxes(25, g, spread=18), random_boxes(3, g, spread=18)
    taken = [*existing]
    expected = []
    for box in candidates:
        free = not overlap_bev(box[None], np.array(taken)).any()
        expected.append(free)
        if free:
            taken.append(box)
    assert accept(candidates, existing).tolist() == expected
    assert 0 < sum(expected) < 25


def test_accept_of_a_chain() -> None:
    row = np.array([[2.0 * i, 0, 0, 3, 1, 1, 0] for i in range(9)])  # each overlaps only its neighbours
    assert accept(row, np.empty((0, 7))).tolist() == [i % 2 == 0 for i in range(9)]
    assert accept(row, row[:1]).tolist() == [i % 2 == 0 and i > 0 for i in range(9)]
    assert accept(np.empty((0, 7)), row).shape == (0,)


# ---- drawing


def test_draw_fills_up_to_the_totals_in_order() -> None:
    g = rng.numpy(0, "draw")
    database = make_database(g)
    labels = np.array([0, 0, 2, 2, 2, 2])
    chosen = draw(database, labels, {"Cyclist": 3, "Car": 5, "Pedestrian": 4, "Tram": 9}, g)
    assert database.labels[chosen].tolist() == [0] * 3 + [1] * 4
    assert len(set(chosen.tolist())) == len(chosen)


def test_draw_takes_what_there_is_and_passes_over_an_absent_class() -> None:
    g = rng.numpy(0, "draw")
    database = make_database(g, each=4).filter(["Pedestrian", "Tram"])
    chosen = draw(database, np.empty(0, np.int64), {"Tram": 5, "Car": 5, "Pedestrian": 9}, g)
    assert sorted(chosen.tolist()) == [0, 1, 2, 3]
    assert draw(database, np.empty(0, np.int64), {}, g).dtype == np.int64


# ---- ground


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.03, -0.02)])
def test_ground_is_found_under_clutter(slope: tuple[float, float]) -> None:
    g = rng.numpy(0, "ground", str(slope))
    points, boxes = road(g, slope=slope), random_boxes(20, g)
    expected = -1.7 + boxes[:, :2] @ np.array(slope)
    assert np.abs(ground_height(boxes, plane_of(points)) - expected).max() < 0.08


def test_ground_that_is_given() -> None:
    boxes = random_boxes(5, rng.numpy(0, "given"))
    plane = np.array([0.02, -0.04, 2.0, 3.4])
    height = ground_height(boxes, plane)
    assert np.allclose(plane[:2] @ boxes[:, :2].T + plane[2] * height + plane[3], 0, atol=1e-6)


def test_ground_of_too_few_points_is_unknown() -> None:
    points = road(rng.numpy(0, "few"))[:30]
    assert fit_ground(points) is None
    assert fit_ground(points[:0]) is None


def test_ground_meets_real_labels(shared_data: Path) -> None:
    training = shared_data / "kitti/training"
    errors = []
    for path in sorted((training / "planes").glob("00000*.txt")):
        calibration = kitti.read_calibration(training / "calib" / path.name)
        objects = kitti.read_objects(training / "label_2" / path.name)
        boxes = kitti.objects_to_boxes(objects.select(objects.types != "DontCare"), calibration)
        points = scans.read_points(training / "velodyne" / f"{path.stem}.bin")
        points = points[kitti.in_camera_view(points, calibration, kitti.DEFAULT_IMAGE_SIZE)]
        bottom = boxes[:, 2] - boxes[:, 5] / 2
        errors.append(ground_height(boxes, plane_of(points)) - bottom)
    found = np.abs(np.concatenate(errors))
    assert len(found) > 25
    assert found.mean() < 0.12
    assert found.max() < 0.5


# ---- pasting


def scene_with(seed: int, existing: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray, Database]:
    g = np.random.default_rng(seed)
    boxes = random_boxes(4 * existing, g)
    boxes = boxes[accept(boxes, boxes[:0])][:existing]
    points = np.concatenate([road(g), fill(boxes, 15, g)])
    return points, boxes, g.integers(0, 3, len(boxes)), make_database(g)


@seeds
def test_pasted_boxes_overlap_nothing_and_hold_their_points_only(seed: int) -> None:
    points, boxes, labels, database = scene_with(seed)
    out, out_boxes, out_labels = PLAIN(points, boxes, labels, np.random.default_rng(seed), database)
    n = len(boxes)
    assert len(out_boxes) > n + 10
    assert np.allclose(out_boxes[:n], boxes, atol=1e-6)
    assert np.array_equal(out_labels[:n], labels)
    area = shared_area(out_boxes, out_boxes)
    area[:n, :n] = 0
    np.fill_diagonal(area, 0)
    assert area.max() < 1e-4

    # Every pasted box is one of the database, with its own points and no others.
    point, box = points_in_boxes(out, out_boxes[n:])
    for k, pasted in enumerate(out_boxes[n:]):
        (source,) = np.flatnonzero(np.abs(database.boxes - pasted).max(1) < 1e-5)
        assert database.labels[source] == out_labels[n + k]
        assert np.array_equal(out[point[box == k]], database.points_of(np.array([source])))

    # Of the scene, exactly the points in pasted boxes are gone.
    gone = set(points_in_boxes(points, out_boxes[n:])[0].tolist())
    stays = np.array([i not in gone for i in range(len(points))])
    assert gone
    assert np.array_equal(out[: stays.sum()], points[stays])
    assert len(out) == stays.sum() + 20 * (len(out_boxes) - n)


@seeds
def test_pasting_aims_at_the_totals(seed: int) -> None:
    points, boxes, labels, database = scene_with(seed)
    _, _, found = PLAIN(points, boxes, labels, np.random.default_rng(seed), database, plane_of(points))
    before, after = np.bincount(labels, minlength=3), np.bincount(found, minlength=3)
    assert (after <= 15).all()
    assert (after >= before).all()
    assert after.sum() > before.sum()


@pytest.mark.parametrize("given", [True, False])
def test_pasted_objects_stand_on_the_ground(given: bool) -> None:
    points, boxes, labels, database = scene_with(3)
    ground = np.array([0.02, -0.01, 1.0, 1.5]) if given else plane_of(points)
    chosen = np.flatnonzero(accept(database.boxes, boxes))
    flying = paste(points, boxes, labels, database, chosen, None)
    out, out_boxes, _ = paste(points, boxes, labels, database, chosen, ground)
    pasted = out_boxes[len(boxes) :]
    bottom = pasted[:, 2] - pasted[:, 5] / 2
    assert np.allclose(bottom, ground_height(pasted, ground), atol=1e-5)
    assert given or np.abs(bottom + 1.7).max() < 0.08
    assert not np.allclose(pasted[:, 2], database.boxes[chosen, 2], atol=0.1)
    # Points move with their box.
    total = database.counts[chosen].sum()
    shift = np.repeat(pasted[:, 2] - database.boxes[chosen, 2], database.counts[chosen])
    assert np.allclose(out[-total:, 2] - flying[0][-total:, 2], shift, atol=1e-5)
    assert np.array_equal(out[-total:, [0, 1, 3]], flying[0][-total:, [0, 1, 3]])


def test_an_unknown_ground_leaves_the_height() -> None:
    points, boxes, labels, database = scene_with(4)
    chosen = np.arange(5)
    _, out_boxes, _ = paste(points[:20], boxes, labels, database, chosen, fit_ground(points[:20]))
    assert np.array_equal(out_boxes[len(boxes) :], database.boxes[chosen])


def test_ground_is_an_option() -> None:
    points, boxes, labels, database = scene_with(4)
    plane = np.array([0.0, 0.0, 1.0, 1.2])
    stood, seen = (
        replace(PLAIN, ground=ground)(points, boxes, labels, rng.numpy(0, "option"), database, plane)
        for ground in (True, False)
    )
    bottom = stood[1][len(boxes) :, 2] - stood[1][len(boxes) :, 5] / 2
    assert np.allclose(bottom, -1.2, atol=1e-5)
    pasted = seen[1][len(boxes) :]
    assert len(pasted) == len(bottom) > 10
    assert (np.abs(database.boxes[None] - pasted[:, None]).max(2).min(1) < 1e-5).all()


# ---- transforms


@seeds
def test_points_keep_to_their_boxes_through_every_transform(seed: int) -> None:
    g = np.random.default_rng(seed)
    boxes = random_boxes(8, g)
    points = np.concatenate([fill(boxes, 12, g), road(g, 300)])
    # Points within rounding of a face may fall on either side of it.
    shrunk, grown = boxes.copy(), boxes.copy()
    shrunk[:, 3:6] *= 0.999
    grown[:, 3:6] *= 1.001
    sure = inside_pairs(points, shrunk)
    unsure = inside_pairs(points, grown) - sure
    angle, factor = g.uniform(-4, 4), g.uniform(0.8, 1.2)
    for moved, moved_boxes in (
        flip(points, boxes),
        rotate(points, boxes, angle),
        scale(points, boxes, factor),
        scale(*rotate(*flip(points, boxes), angle), factor),
    ):
        assert inside_pairs(moved, moved_boxes) - unsure == sure
        assert np.array_equal(moved[:, 3], points[:, 3])
        assert (moved_boxes[:, 6] >= -np.float32(np.pi)).all()
        assert (moved_boxes[:, 6] <= np.float32(np.pi)).all()
        assert moved.dtype == moved_boxes.dtype == np.float32
    assert len(sure) >= 96


def test_transforms_by_hand() -> None:
    points = np.array([[1.0, 2, 3, 0.5]])
    boxes = np.array([[1.0, 2, 3, 4, 5, 6, 0.25]])
    assert np.allclose(flip(points, boxes)[0], [[1, -2, 3, 0.5]])
    assert np.allclose(flip(points, boxes)[1], [[1, -2, 3, 4, 5, 6, -0.25]])
    assert np.allclose(rotate(points, boxes, math.pi / 2)[0], [[-2, 1, 3, 0.5]])
    assert np.allclose(rotate(points, boxes, math.pi / 2)[1], [[-2, 1, 3, 4, 5, 6, 0.25 + math.pi / 2]])
    assert np.allclose(rotate(points, boxes, 3.0)[1][0, 6], 3.25 - 2 * math.pi)
    assert np.allclose(scale(points, boxes, 2.0)[0], [[2, 4, 6, 0.5]])
    assert np.allclose(scale(points, boxes, 2.0)[1], [[2, 4, 6, 8, 10, 12, 0.25]])


def test_transforms_leave_their_arguments_alone() -> None:
    points, boxes, labels, database = scene_with(5)
    kept = [array.copy() for array in (points, boxes, labels, database.points, database.boxes)]
    for array in (points, boxes, labels, database.points, database.boxes):
        array.setflags(write=False)
    Transforms(flip=1.0)(points, boxes, labels, rng.numpy(0, "alone"), database)
    for before, after in zip(kept, (points, boxes, labels, database.points, database.boxes), strict=True):
        assert np.array_equal(before, after)


def test_crop() -> None:
    limits = (0.0, -2, -1, 4, 2, 1)
    points = np.array([[0, 0, 0, 1], [4, 0, 0, 1], [1, -2, -1, 1], [1, 0, 1, 1], [3, 1, 0.5, 1]], np.float32)
    boxes = np.zeros((3, 7), np.float32)
    boxes[:, :3] = [[1, 1, 5], [4, 0, 0], [0, -2, 0]]
    out, out_boxes, labels = crop(points, boxes, np.array([7, 8, 9]), limits)
    assert np.array_equal(out, points[[0, 2, 4]])
    assert np.array_equal(out_boxes, boxes[[0, 2]])
    assert labels.tolist() == [7, 9]


# ---- the whole


def test_deterministic_and_a_function_of_the_generator() -> None:
    points, boxes, labels, database = scene_with(6)
    transforms = Transforms()
    first = transforms(points, boxes, labels, rng.numpy(0, "augment", 3), database)
    again = transforms(points, boxes, labels, rng.numpy(0, "augment", 3), database)
    other = transforms(points, boxes, labels, rng.numpy(0, "augment", 4), database)
    for a, b in zip(first, again, strict=True):
        assert np.array_equal(a, b)
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_the_scene_is_transformed_alike_with_and_without_a_database() -> None:
    points, boxes, labels, database = scene_with(7)
    _, alone, _ = Transforms()(points, boxes, labels, rng.numpy(0, "alike"))
    _, joined, _ = Transforms()(points, boxes, labels, rng.numpy(0, "alike"), database)
    assert np.array_equal(joined[: len(alone)], alone)
    assert not np.array_equal(alone, boxes)


def test_draws_cover_their_ranges() -> None:
    box = np.array([[10.0, 0, 0, 4, 2, 2, 0]])
    mark = np.array([[10.0, 1e-3, 0, 0]])  # a little to the left of the axis
    g = rng.numpy(0, "ranges")
    transforms = Transforms(flip=0.5, rotation=(-0.5, 0.25), scale=(0.9, 1.2))
    angles, factors, flips = [], [], []
    for _ in range(400):
        points, boxes, _ = transforms(mark, box, np.array([0]), g)
        angles.append(boxes[0, 6])
        factors.append(boxes[0, 3] / 4)
        side = np.arctan2(points[0, 1], points[0, 0]) - boxes[0, 6]
        flips.append(side < 0)
    for values, low, high in ((angles, -0.5, 0.25), (factors, 0.9, 1.2)):
        assert low <= min(values) < low + 0.02 * (high - low)
        assert high >= max(values) > high - 0.02 * (high - low)
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize("empty", list(itertools.product([True, False], repeat=2)))
def test_an_empty_frame(empty: tuple[bool, bool]) -> None:
    points, boxes, labels, database = scene_with(8)
    if empty[0]:
        points = points[:0]
    if empty[1]:
        boxes, labels = boxes[:0], labels[:0]
    out, out_boxes, out_labels = Transforms()(points, boxes, labels, rng.numpy(0, "empty"), database)
    assert len(out_boxes) == len(out_labels) > 10
    assert out.shape[1] == 4
    out, out_boxes, out_labels = Transforms()(points, boxes, labels, rng.numpy(0, "empty"))
    assert (len(out), len(out_boxes), len(out_labels)) == (len(points), len(boxes), len(labels))


def test_a_database_without_the_class() -> None:
    points, boxes, labels, database = scene_with(9)
    for poor in (database.filter(["Car", "Tram", "Cyclist"]), Database.build([]).filter(CLASSES)):
        out, out_boxes, out_labels = PLAIN(points, boxes, labels, rng.numpy(0, "poor"), poor)
        assert (out_labels[len(labels) :] != 1).all()
        assert len(poor) or np.array_equal(out, points)
        assert len(poor) or np.allclose(out_boxes, boxes, atol=1e-6)


def test_a_range_limits_what_is_pasted_and_what_is_left() -> None:
    points, boxes, labels, database = scene_with(10)
    limits = (0.0, -8.0, -3.0, 16.0, 8.0, 1.0)
    near = Transforms(flip=0.0, rotation=(0, 0), scale=(1, 1), point_range=limits)
    out, out_boxes, _ = near(points, boxes, labels, rng.numpy(0, "range"), database)
    for values in (out[:, :2], out_boxes[:, :2]):
        assert (values >= [0, -8]).all()
        assert (values < [16, 8]).all()
    assert len(out_boxes) > len(boxes) / 2
    turned, turned_boxes, _ = Transforms(point_range=limits)(points, boxes, labels, rng.numpy(0, "range"), database)
    assert (turned[:, 0] < 16).all()
    assert (turned_boxes[:, 0] < 16).all()


@pytest.mark.parametrize(
    "options",
    [{"flip": 1.5}, {"flip": -0.1}, {"rotation": (0.5, -0.5)}, {"scale": (0.0, 1.0)}, {"scale": (1.1, 0.9)}],
)
def test_options_are_checked(options: dict[str, tuple[float, float]]) -> None:
    (name,) = options
    with pytest.raises(KDBenchError, match=f"data.transforms.{name}: found"):
        Transforms(**options)  # type: ignore[arg-type]
