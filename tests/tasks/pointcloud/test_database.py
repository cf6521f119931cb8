from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdbench.base import rng
from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti, scans
from tasks.pointcloud.database import Database, Sample, points_in_boxes, spans


def scene(n: int, *names: str | int, points: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Points ``(P, 4)`` and boxes ``(n, 7)``, some overlapping, in both in float32."""
    g = rng.numpy(0, "scene", *names)
    low, high = np.array([0, -10, -2, 0]), np.array([30, 10, 1, 1])
    cloud = g.uniform(low, high, (points, 4)).astype(np.float32)
    centre = g.uniform([0, -12, -2], [32, 12, 1], (n, 3))
    boxes = np.column_stack([centre, g.uniform(0.3, 6, (n, 3)), g.uniform(-7, 7, n)])
    return cloud, boxes.astype(np.float32)


def sample(name: str, n: int, points: int = 4000) -> Sample:
    g = rng.numpy(0, "labels", name)
    cloud, boxes = scene(n, name, points=points)
    return name, cloud, boxes, g.choice(["Car", "Cyclist", "Van"], n), g.integers(-1, 3, n)


def inside(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether points (P, 3) lie in or on boxes (N, 7), each with each, in the frame of the box: (P, N)."""
    points, boxes = points.astype(np.float64), boxes.astype(np.float64)
    columns = []
    for x, y, z, length, width, height, yaw in boxes:
        moved = points[:, :3] - [x, y, z]
        turned = moved @ np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        columns.append((np.abs(turned) <= np.array([length, width, height]) / 2).all(axis=1))
    return np.stack(columns, axis=1) if columns else np.empty((len(points), 0), dtype=bool)


def test_spans() -> None:
    assert spans(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert len(spans(np.array([], dtype=int), np.array([], dtype=int))) == 0


@pytest.mark.parametrize("n", [0, 1, 40])
def test_points_in_boxes_agrees_with_the_full_mask(n: int) -> None:
    points, boxes = scene(n, "mask", n)
    point, box = points_in_boxes(points, boxes)
    expected_box, expected_point = inside(points, boxes).T.nonzero()
    assert point.tolist() == expected_point.tolist()
    assert box.tolist() == expected_box.tolist()
    assert n == 0 or len(point) > 20


def test_points_in_boxes_counts_faces_and_takes_no_points() -> None:
    box = np.array([[1.0, 2, 3, 2, 4, 6, 0]])
    faces = np.array([[2.0, 4, 6, 0], [0, 0, 0, 0], [2.001, 2, 3, 0], [1, 4.001, 3, 0], [1, 2, 6.001, 0]])
    assert points_in_boxes(faces, box)[0].tolist() == [0, 1]
    assert len(points_in_boxes(np.empty((0, 4)), box)[0]) == 0


def test_build_keeps_the_points_of_each_object() -> None:
    frames = [sample("a", 5), sample("b", 0), sample("c", 7)]
    database = Database.build(frames)
    assert len(database) == 12
    assert database.frames.tolist() == ["a"] * 5 + ["c"] * 7
    assert database.boxes.dtype == database.points.dtype == np.float32
    types = np.concatenate([frame[3] for frame in frames])
    assert database.classes[database.labels].tolist() == types.tolist()
    assert database.difficulty.tolist() == np.concatenate([frame[4] for frame in frames]).tolist()
    _, cloud, boxes, _, _ = frames[2]
    for index, box in enumerate(boxes):
        own = cloud[points_in_boxes(cloud, box[None])[0]]
        assert np.array_equal(database.points_of(np.array([5 + index])), own)
    both = database.points_of(np.array([11, 2]))
    assert np.array_equal(both, np.concatenate([database.points_of(np.array([i])) for i in (11, 2)]))


def test_members() -> None:
    database = Database.build([sample("a", 30)])
    assert set(database.classes[database.labels[database.members("Car")]]) == {"Car"}
    assert sum(len(database.members(str(name))) for name in database.classes) == 30
    assert len(database.members("Tram")) == 0


def test_filter_reorders_classes_and_drops_poor_objects() -> None:
    database = Database.build([sample("a", 60, points=700), sample("b", 60, points=700)])
    kept = database.filter(["Van", "Tram", "Car"])
    assert kept.classes.tolist() == ["Van", "Tram", "Car"]
    types = database.classes[database.labels]
    expected = database.difficulty >= 0
    expected &= np.isin(types, ["Van", "Car"]) & (database.counts >= 5)
    index = np.flatnonzero(expected)
    assert 0 < len(index) < 120
    assert np.array_equal(kept.boxes, database.boxes[index])
    assert np.array_equal(kept.points, database.points_of(index))
    assert kept.classes[kept.labels].tolist() == types[index].tolist()
    assert len(kept.members("Tram")) == 0


def test_an_object_at_the_limit_is_kept() -> None:
    box = np.array([[10.0, 0, 0, 4, 2, 2, 0]])
    points = np.column_stack([np.linspace(9, 11, 5), np.zeros(5), np.zeros(5), np.ones(5)])
    for number, difficulty, kept in ((5, 0, 1), (4, 0, 0), (5, -1, 0)):
        database = Database.build([("a", points[:number], box, ["Car"], np.array([difficulty]))])
        assert len(database.filter(["Car"])) == kept


def test_select_takes_objects_with_their_points() -> None:
    database = Database.build([sample("a", 9), sample("b", 3), sample("c", 5)])
    mask = np.isin(database.frames, ["a", "c"])
    for which in (mask, np.flatnonzero(mask)):
        found = database.select(which)
        assert found.frames.tolist() == ["a"] * 9 + ["c"] * 5
        assert np.array_equal(found.boxes, database.boxes[mask])
        assert np.array_equal(found.points, database.points_of(np.flatnonzero(mask)))
        assert np.array_equal(found.points_of(np.array([12])), database.points_of(np.array([15])))


@pytest.mark.parametrize("frames", [[], [sample("a", 0)], [sample("a", 9), sample("b", 3)]])
def test_round_trip(tmp_path: Path, frames: list[Sample]) -> None:
    database = Database.build(frames)
    database.save(tmp_path / "database.npz")
    loaded = Database.load(tmp_path / "database.npz")
    for name, value in vars(database).items():
        stored = getattr(loaded, name)
        assert stored.dtype == value.dtype
        assert np.array_equal(stored, value), name
    assert [p.name for p in tmp_path.iterdir()] == ["database.npz"]
    assert len(loaded.filter(["Car"]).classes) == 1


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "database.npz"
    Database.build([sample("a", 9)]).save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("interrupted")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="interrupted"):
        Database.build([sample("b", 9)]).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["database.npz"]


def test_load_explains_a_missing_or_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "database.npz"
    with pytest.raises(KDBenchError, match="no such database"):
        Database.load(path)
    for content in (b"", b"not a zip file", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(KDBenchError, match="not a ground-truth database"):
            Database.load(path)
    np.savez(path, boxes=np.zeros((0, 7)))
    with pytest.raises(KDBenchError, match="not a ground-truth database"):
        Database.load(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(KDBenchError, match="not a ground-truth database"):
        Database.load(tmp_path / "single.npy")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("points", np.zeros((3, 4), np.float32), "points has shape"),
        ("counts", np.full(9, -1), "points has shape"),
        ("boxes", np.zeros((9, 6), np.float32), "boxes has shape"),
        ("labels", np.full(9, 3), "a label is not among"),
        ("labels", np.full(9, -1), "a label is not among"),
        ("frames", np.array(["a"]), "frames has shape"),
    ],
)
def test_load_checks_what_it_reads(tmp_path: Path, name: str, value: np.ndarray, message: str) -> None:
    arrays = vars(Database.build([sample("a", 9)])) | {name: value}
    np.savez(tmp_path / "database.npz", **arrays)
    with pytest.raises(KDBenchError, match=message):
        Database.load(tmp_path / "database.npz")


def test_load_runs_no_pickle(tmp_path: Path) -> None:
    arrays = vars(Database.build([sample("a", 9)])) | {"frames": np.array([{}] * 9, dtype=object)}
    np.savez(tmp_path / "database.npz", **arrays)
    with pytest.raises(KDBenchError, match="allow_pickle=False"):
        Database.load(tmp_path / "database.npz")


def test_loader_side_does_without_torch() -> None:
    code = "import sys, tasks.pointcloud.transforms; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_real_frames(shared_data: Path) -> None:
    root = shared_data / "kitti"
    name = "000134"
    objects = kitti.read_objects(root / f"training/label_2/{name}.txt")
    objects = objects.select(objects.types != "DontCare")
    calibration = kitti.read_calibration(root / f"training/calib/{name}.txt")
    points = scans.read_points(root / f"training/velodyne/{name}.bin")
    boxes = kitti.objects_to_boxes(objects, calibration)
    database = Database.build([(name, points, boxes, objects.types, kitti.difficulty(objects))])
    assert len(database) == len(objects)
    assert (database.counts > 0).all()
    kept = database.filter(["Car", "Pedestrian", "Cyclist"])
    assert len(kept.members("Pedestrian")) >= 5
    assert database.counts.tolist() == inside(points, database.boxes).sum(0).tolist()
