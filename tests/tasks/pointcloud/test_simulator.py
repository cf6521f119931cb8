from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("open3d", reason="the simulator needs Open3D: pip install 'kdbench[pointcloud]'")

from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti, scene, simulator
from tasks.pointcloud.scans import read_points
from tasks.pointcloud.simulator import calibration, simulate, simulate_frame

CLASSES = ("Car", "Pedestrian", "Cyclist")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def cells(points: np.ndarray, low: Any, high: Any, size: Any) -> np.ndarray:
    """Points in each occupied cell of a grid."""
    inside = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1), :3]
    index = np.floor((inside - low) / size).astype(np.int64)
    return np.unique(index, axis=0, return_counts=True)[1]


def statistics(frame: simulator.Frame) -> dict[str, float]:
    seen = kitti.in_camera_view(frame.points, calibration(), kitti.DEFAULT_IMAGE_SIZE)
    points = frame.points[seen].astype(np.float64)
    pillars = cells(points, [0, -39.68, -3], [69.12, 39.68, 1], [0.16, 0.16, 4])
    voxels = cells(points, [0, -40, -3], [70.4, 40, 1], [0.05, 0.05, 0.1])
    return {
        "points": len(points),
        "pillars": len(pillars),
        "single_pillars": float((pillars == 1).mean()),
        "single_voxels": float((voxels == 1).mean()),
        "full_pillars": int((pillars >= 32).sum()),
        "reflectance": float(points[:, 3].mean()),
    }


def inside(points: np.ndarray, box: np.ndarray, margin: float = 0.1) -> np.ndarray:
    local = points[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.column_stack([local @ [cos, sin, 0], local @ [-sin, cos, 0], local[:, 2]])
    return (np.abs(local) < box[3:6] / 2 + margin).all(axis=1)


def labelled(frame: simulator.Frame) -> tuple[kitti.Objects, np.ndarray]:
    objects = frame.objects.select(frame.objects.types != "DontCare")
    return objects, kitti.objects_to_boxes(objects, calibration())


def test_frame_is_a_function_of_seed_and_number():
    first, again = simulate_frame(3, 7), simulate_frame(3, 7)
    assert np.array_equal(first.points, again.points)
    assert np.array_equal(first.objects.location, again.objects.location)
    for other in (simulate_frame(3, 8), simulate_frame(4, 7)):
        assert len(other.points) != len(first.points)


def test_points_are_rounded_and_in_range():
    points = simulate_frame(0, 0).points
    assert points.dtype == np.float32
    assert 95_000 < len(points) < 130_000
    for column, step in ((points[:, :3], 0.001), (points[:, 3], 0.01)):
        steps = column.astype(np.float64) / step
        assert np.abs(steps - steps.round()).max() < 5e-3
    assert points[:, 3].min() == 0
    assert points[:, 3].max() < 1
    assert np.linalg.norm(points[:, :3], axis=1).max() < 80.1


def test_only_the_camera_view():
    points = simulate_frame(0, 0, full_sweep=False).points
    assert kitti.in_camera_view(points, calibration(), kitti.DEFAULT_IMAGE_SIZE).all()
    assert 14_000 < len(points) < 21_000


def test_labels_agree_with_points_and_image():
    seen = 0
    for number in range(4):
        frame = simulate_frame(1, number, full_sweep=False)
        objects, boxes = labelled(frame)
        whole = frame.objects.types == "DontCare"
        assert not whole[: len(objects)].any()  # DontCare comes last
        again, kept = kitti.boxes_to_objects(boxes, objects.types, None, calibration(), kitti.DEFAULT_IMAGE_SIZE)
        assert len(kept) == len(objects)
        far = objects.location[:, 2] > 6  # nearer, rounding to centimetres moves pixels
        assert np.abs(again.bbox - objects.bbox)[far].max() < 3
        assert np.isin(objects.occluded, [0, 1, 2, 3]).all()
        assert ((objects.truncated >= 0) & (objects.truncated <= 0.95)).all()
        for box, occluded, truncated in zip(boxes, objects.occluded, objects.truncated, strict=True):
            if occluded == 0 and truncated < 0.1 and np.hypot(*box[:2]) < 30:
                assert inside(frame.points, box).sum() >= 10
                seen += 1
    assert seen >= 8


def test_objects_do_not_overlap_and_keep_to_the_bounds():
    shapely = pytest.importorskip("shapely")
    for number in range(12):
        _, boxes = labelled(simulate_frame(2, number, full_sweep=False, max_distance=35.84, lateral=17.92))
        assert (np.abs(boxes[:, 1]) < 17.95).all()
        assert (boxes[:, 0] > 0).all()
        assert (boxes[:, 0] < 35.87).all()
        footprints = []
        for x, y, _, length, width, _, yaw in boxes:
            rectangle = shapely.box(-length / 2, -width / 2, length / 2, width / 2)
            turned = shapely.affinity.rotate(rectangle, yaw, origin=(0, 0), use_radians=True)
            footprints.append(shapely.affinity.translate(turned, x, y))
        for i, footprint in enumerate(footprints):
            assert not any(footprint.intersects(other) for other in footprints[:i])


def test_objects_stand_on_the_ground():
    bottoms = np.concatenate([(b[:, 2] - b[:, 5] / 2) for b in (labelled(simulate_frame(0, n))[1] for n in range(4))])
    assert -2.0 < np.median(bottoms) < -1.4
    assert (np.abs(bottoms + 1.7) < 2).all()


def test_density_sets_the_classes():
    density = {"Car": 0, "Van": 0, "Cyclist": 0, "Pedestrian": 6}
    frames = [simulate_frame(0, n, full_sweep=False, density=density) for n in range(4)]
    types = np.concatenate([frame.objects.types for frame in frames])
    assert set(types) <= {"Pedestrian", "DontCare"}
    assert (types == "Pedestrian").sum() >= 10


def test_statistics_of_a_few_frames():
    rows = [statistics(simulate_frame(0, n, full_sweep=False)) for n in range(5)]
    median = {key: np.median([row[key] for row in rows]) for key in rows[0]}
    assert 15_700 <= median["points"] <= 20_300
    assert 3_000 <= median["pillars"] <= 8_600
    assert 0.2 < median["single_pillars"] < 0.52
    assert 0.7 < median["single_voxels"] < 0.92


def test_writes_kitti_layout_whatever_the_workers(tmp_path):
    options: dict[str, Any] = {"train": 4, "test": 2, "seed": 5, "full_sweep": False, "progress": False}
    simulate(tmp_path / "one", workers=1, **options)
    simulate(tmp_path / "two", workers=2, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
    assert kitti.read_split(tmp_path / "one", "train") == [f"{n:06d}" for n in range(4)]
    assert kitti.read_split(tmp_path / "one", "val") == ["000004", "000005"]
    training = tmp_path / "one" / "training"
    frame = simulate_frame(5, 4, full_sweep=False)
    assert np.array_equal(read_points(training / "velodyne" / "000004.bin"), frame.points)
    objects = kitti.read_objects(training / "label_2" / "000004.txt")
    assert np.array_equal(objects.types, frame.objects.types)
    np.testing.assert_allclose(objects.location, frame.objects.location, atol=1e-9)
    read = kitti.read_calibration(training / "calib" / "000004.txt")
    np.testing.assert_allclose(read.lidar_to_rectified, calibration().lidar_to_rectified, atol=1e-9)


def test_disk_full_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def write(path: Path, points: np.ndarray) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(points.tobytes())

    monkeypatch.setattr(simulator, "write_points", write)
    with pytest.raises(KDBenchError, match="cannot write the simulated frames .No space left on device.") as caught:
        simulate(tmp_path / "data", train=4, test=2, workers=1, full_sweep=False, progress=False)
    assert "\n" not in str(caught.value)
    assert len(written) == 3
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 0}, "0 training and 1 test frames"),
        ({"max_distance": 3.0}, "max_distance=3.0"),
        ({"density": {"Cars": 1}}, "unknown class 'Cars'; did you mean 'Car'"),
        ({"density": {"Car": -1}}, "density: -1 of Car"),
    ],
)
def test_bad_arguments(tmp_path, options, said):
    with pytest.raises(KDBenchError, match=said):
        simulate(tmp_path / "data", **{"train": 1, "test": 1, "progress": False, **options})
    assert os.listdir(tmp_path) == []


def test_refuses_a_folder_in_use_and_a_file_in_the_way(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("keep")
    with pytest.raises(KDBenchError, match="already holds something"):
        simulate(tmp_path / "data", train=1, test=1, workers=1, progress=False)
    assert (tmp_path / "data" / "mine.txt").read_text() == "keep"
    with pytest.raises(KDBenchError, match="cannot write the simulated frames"):
        simulate(tmp_path / "data" / "mine.txt" / "data", train=1, test=1, workers=1, progress=False)


@pytest.mark.slow
def test_fifty_frames_look_like_kitti():
    frames = [simulate_frame(0, n) for n in range(50)]
    rows = [statistics(frame) for frame in frames]
    median = {key: np.median([row[key] for row in rows]) for key in rows[0]}
    # Least and greatest of the real frames; what lies between them is a street in Karlsruhe.
    assert 15_700 <= median["points"] <= 20_300
    assert 3_000 <= median["pillars"] <= 8_600
    assert 0.21 <= median["single_pillars"] <= 0.51
    assert 0.74 <= median["single_voxels"] <= 0.90
    assert 5 <= median["full_pillars"] <= 101
    assert 0.19 <= median["reflectance"] <= 0.30

    density: dict[str, list[float]] = {kind: [] for kind in CLASSES}
    for frame in frames:
        objects, boxes = labelled(frame)
        for kind, box, occluded, truncated in zip(
            objects.types, boxes, objects.occluded, objects.truncated, strict=True
        ):
            if kind in CLASSES and occluded == 0 and truncated < 0.1:
                density[kind].append(inside(frame.points, box, margin=0.05).sum() * (box[:2] ** 2).sum())
    for kind, expected in (("Car", 85e3), ("Pedestrian", 35e3), ("Cyclist", 38e3)):
        assert expected / 2 <= np.median(density[kind]) <= expected * 2, kind


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [{}, {"max_distance": 35.84, "lateral": 17.92}])
def test_eighty_frames_hold_enough_ground_truth(bounds):
    frames = [simulate_frame(0, n, full_sweep=False, **bounds) for n in range(80)]
    types = np.concatenate([frame.objects.types for frame in frames])
    levels = np.concatenate([kitti.difficulty(frame.objects) for frame in frames])
    for kind in CLASSES:
        for level in range(3):
            # With fewer, a perfect detector stays below AP 100 at 40 recall positions.
            assert ((types == kind) & (levels >= 0) & (levels <= level)).sum() >= 41, (kind, level)


def test_the_revision_names_the_scans_of_the_committed_records():
    """Whoever changes what is simulated gives it another name, and then puts the new figures here."""
    assert scene.REVISION == "b0e322f0e804414f"
    frame = simulate_frame(1, 0, max_distance=28.16, lateral=14.08, full_sweep=False)
    assert len(frame.points) == pytest.approx(15939, abs=5)
    assert frame.points.mean(axis=0) == pytest.approx([17.264, -0.286, -0.818, 0.25], abs=2e-3)
    assert frame.objects.types.tolist() == ["Car"] * 8 + ["Cyclist"] * 2 + ["Pedestrian"] * 3
    assert frame.objects.occluded.tolist() == [1, 1, 1, 2, 2, 0, 0, 0, 1, 1, 0, 0, 2]
    assert frame.objects.location.mean(axis=0) == pytest.approx([-2.18, 1.88, 13.99], abs=0.01)
    assert frame.objects.bbox.mean(axis=0) == pytest.approx([444.5, 188.3, 572.5, 294.8], abs=0.1)
