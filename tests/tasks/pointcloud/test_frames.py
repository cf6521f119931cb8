from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.base import rng
from kdbench.base import store as cache
from kdbench.base.store import Store
from kdbench.data import Key
from tasks.pointcloud import frames as module
from tasks.pointcloud import kitti, scans
from tasks.pointcloud.data import Scans, Split
from tasks.pointcloud.database import Database, points_in_boxes
from tasks.pointcloud.frames import DATABASE, Frames, Sensors, content_digests, prepare
from tasks.pointcloud.transforms import Transforms, fit_ground
from tests.tasks.pointcloud import tiny

CLASSES = tiny.CLASSES


def test_scans_are_cropped_to_the_image(root, frames):
    """Point by point: kept where the projection is ahead of the camera and inside the image."""
    whole = scans.read_points(root / "training" / "velodyne" / "000000.bin")
    camera = np.column_stack([-whole[:, 1], -whole[:, 2] - 0.08, whole[:, 0] - 0.27]).astype(np.float64)
    with np.errstate(divide="ignore"):
        u, v = 700 * camera[:, 0] / camera[:, 2] + 600, 700 * camera[:, 1] / camera[:, 2] + 180
    width, height = kitti.DEFAULT_IMAGE_SIZE
    seen = (camera[:, 2] > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    assert 0.1 < seen.mean() < 0.9
    np.testing.assert_array_equal(frames.read("000000").points, whole[seen])


def test_frames_give_boxes_and_labels_without_dont_care(frames):
    _, boxes, types = tiny.scene("000002")
    frame = frames.read("000002")
    np.testing.assert_allclose(frame.boxes, boxes, atol=1e-4)
    assert [CLASSES[i] if i >= 0 else "" for i in frame.labels] == ["Car", "Pedestrian", "Cyclist", ""]
    assert types[3] == "Van"
    objects, calibration, size = frames.truth("000002")
    assert objects.types.tolist() == [*types, "DontCare"]
    np.testing.assert_allclose(calibration.p2, tiny.CALIBRATION.p2)
    assert size == kitti.DEFAULT_IMAGE_SIZE


def test_the_ground_is_fitted_once_and_is_that_of_the_scan(frames, monkeypatch):
    """The numbers of a frame are those of a plane fitted to its points each time."""
    database = Database.load(frames.prepared / DATABASE).filter(CLASSES)
    expected = {}
    for name in ("000000", "000001"):
        frame = frames.read(name)
        plane = fit_ground(frame.points)
        assert plane is not None
        np.testing.assert_array_equal(frame.ground, plane)
        stream = rng.numpy(3, "augment", 1, name)
        expected[name] = Transforms()(frame.points, frame.boxes, frame.labels, stream, database, plane)
    monkeypatch.setattr(module, "fit_ground", lambda _: pytest.fail("fitted again"))
    scans = Scans(frames, list(expected), Transforms(), database)
    for index, (points, boxes, labels) in enumerate(expected.values()):
        found = scans[Key(1, index, 3)]
        np.testing.assert_array_equal(found.points, points)
        np.testing.assert_array_equal(found.boxes, boxes)
        np.testing.assert_array_equal(found.labels, labels)


def test_a_scan_without_ground_is_prepared(tmp_path):
    root = tiny.write(tmp_path / "kitti", 2, 1)
    path = root / "training" / "velodyne" / "000000.bin"
    scans.write_points(path, scans.read_points(path)[:20])
    prepare(root, ["000000", "000001"], ["000001"], CLASSES, tmp_path)
    read = Frames(root, tmp_path, CLASSES)
    assert read.read("000000").ground is None
    assert read.read("000001").ground is not None


def test_text_as_windows_writes_it_and_names_in_lower_case_are_the_same_data(root, frames, tmp_path):
    other = shutil.copytree(root, tmp_path / "kitti")
    for path in [*other.glob("training/*/*.txt"), *other.glob("ImageSets/*.txt")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_text().lower().replace("\n", "\r\n").encode())
    split = Split.of(other)
    assert split == Split.of(root)
    again = tiny.prepared(other, tmp_path / "prepared")
    for name in (split.train[0], split.test[0]):
        ours, theirs = again.read(name), frames.read(name)
        assert np.array_equal(ours.points, theirs.points)
        assert np.array_equal(ours.boxes, theirs.boxes)
        assert ours.labels.tolist() == theirs.labels.tolist() == [2, 0, 1, -1]
    first, second = (Database.load(made.prepared / DATABASE) for made in (frames, again))
    assert len(first) == len(second)


def test_the_database_holds_the_objects_of_the_training_frames(root, frames):
    database = Database.load(frames.prepared / DATABASE)
    assert set(database.frames) == set(Split.of(root).train)
    assert sorted(set(database.classes)) == ["Car", "Cyclist", "Pedestrian"]
    assert len(database) == 3 * len(Split.of(root).train)
    assert database.counts.min() >= 70  # 80 are inside; some may be out of the image


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_content_digest_sees_labels_calibration_scans_and_images(root, tmp_path):
    made = tiny.write(tmp_path / "kitti")
    store = Store(tmp_path / "store")
    names = ["000000", "000001"]
    digests = content_digests(made, names, store)
    assert digests == content_digests(root, names, store)
    training = made / "training"
    changes = [
        lambda: append(training / "label_2" / "000000.txt", b"\n"),
        lambda: append(training / "calib" / "000001.txt", b"# seen\n"),
        lambda: append(training / "velodyne" / "000001.bin", bytes(16)),
        lambda: Image.new("L", (1224, 370)).save(folder(training / "image_2") / "000000.png"),
    ]
    for change in changes:
        change()
        digests += content_digests(made, names, store)
    assert len(set(digests)) == 5
    assert content_digests(made, names[:1], store)[0] not in digests


def test_the_digest_of_a_part_sees_its_frames_alone(tmp_path):
    made, store = tiny.write(tmp_path / "kitti"), Store(tmp_path / "store")
    whole, first, second = content_digests(made, ["000000", "000001"], store, ["000000"], ["000001"])
    assert [first, second] == [content_digests(made, [name], store)[0] for name in ("000000", "000001")]
    append(made / "training" / "velodyne" / "000001.bin", bytes(16))
    found = content_digests(made, ["000000", "000001"], store, ["000000"], ["000001"])
    assert found[1] == first
    assert whole != found[0]
    assert second != found[2]


def test_content_digest_reads_the_bytes_of_scans_and_each_once(tmp_path, monkeypatch):
    made = tiny.write(tmp_path / "kitti")
    store = Store(tmp_path / "store")
    scan = made / "training" / "velodyne" / "000000.bin"
    monkeypatch.setattr(cache, "UNSETTLED", 0)
    first, times = content_digests(made, ["000000"], store), scan.stat()
    scan.write_bytes(scan.read_bytes()[:-4] + bytes(4))
    os.utime(scan, ns=(times.st_atime_ns, times.st_mtime_ns))
    second = content_digests(made, ["000000"], store)
    assert second != first, "of the same size, and its time put back"
    hash_files = module.hash_files

    def texts_alone(paths: Sequence[Path], root: Path) -> dict[str, str]:
        assert not [p for p in paths if p.suffix == ".bin"], "the scans were read again"
        return hash_files(paths, root)

    monkeypatch.setattr(module, "hash_files", texts_alone)
    assert content_digests(made, ["000000"], store) == second


# ---- without a camera ---------------------------------------------------------------------------------------------

ALL_ROUND = Sensors(camera=False)
LOW, HIGH = np.array([-50.0, -50, -3]), np.array([50.0, 50, 1])


def test_without_a_camera_scans_stay_whole_and_no_calibration_is_needed(root, frames, tmp_path):
    names = ["000000", "000001"]
    whole = scans.read_points(root / "training" / "velodyne" / "000000.bin")
    prepare(root, names, names, CLASSES, tmp_path, ALL_ROUND)
    made = Frames(root, tmp_path, CLASSES, ALL_ROUND)
    np.testing.assert_array_equal(made.read("000000").points, whole)
    np.testing.assert_allclose(made.read("000000").boxes, frames.read("000000").boxes)
    assert made.truth("000000")[2] is None
    bare = shutil.copytree(root, tmp_path / "bare")
    shutil.rmtree(bare / "training" / "calib")
    split = Split.of(bare, camera=False)
    assert split == Split.of(root)
    prepare(bare, names, names, CLASSES, tmp_path, ALL_ROUND)
    np.testing.assert_allclose(Frames(bare, tmp_path, CLASSES, ALL_ROUND).truth("000000")[1].velo_to_cam, AXES)


AXES = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]


def test_without_a_camera_points_say_how_difficult_an_object_is(root, tmp_path):
    other = shutil.copytree(root, tmp_path / "kitti")
    path = other / "training" / "velodyne" / "000000.bin"
    _, boxes, types = tiny.scene("000000")
    assert types.tolist() == ["Car", "Pedestrian", "Cyclist", "Van"]
    points = scans.read_points(path)
    inside = [np.flatnonzero(points_in_boxes(points, box[None])[1] == 0) for box in boxes]
    rows = [points_in_boxes(points, box[None])[0] for box in boxes]
    assert min(len(i) for i in inside) > 6
    left = np.ones(len(points), dtype=bool)
    for kept, row in zip((6, 5, 0, 80), rows, strict=True):
        left[row[kept:]] = False
    scans.write_points(path, points[left])
    names = ["000000"]
    prepare(other, names, names, CLASSES, tmp_path, ALL_ROUND)
    made = Frames(other, tmp_path, CLASSES, ALL_ROUND)
    assert made.contents.points[:3].tolist() == [6, 5, 0]
    truth = made.scored("000000", LOW, HIGH)
    assert truth.types.tolist() == [*types]  # DontCare is of the image
    assert kitti.difficulty(truth).tolist() == [1, 2, -1, 1]
    assert kitti.difficulty(made.scored("000000", LOW, np.array([8.5, 50, 1]))).tolist() == [-1, 2, -1, -1]
    assert len(Database.load(tmp_path / DATABASE).filter(CLASSES)) == 2  # of 5 points or more


def test_a_box_without_a_size_is_no_object_to_learn(root, tmp_path):
    other = shutil.copytree(root, tmp_path / "kitti")
    path = other / "training" / "label_2" / "000000.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([" ".join([*lines[0].split()[:8], "0", *lines[0].split()[9:]]), *lines[1:]]))
    names = ["000000", "000001"]
    manifest = prepare(other, names, names, CLASSES, tmp_path)
    assert manifest["odd"] == [f"{path}:1: a size that is not above 0 (height, width, length)"]
    frame = Frames(other, tmp_path, CLASSES).read("000000")
    assert frame.labels.tolist() == [0, 1, -1]
    assert (frame.boxes[:, 3:6] > 0).all()
    assert len(Database.load(tmp_path / DATABASE)) == 5


def test_a_scan_without_a_point_in_view_is_named(root, tmp_path):
    other = shutil.copytree(root, tmp_path / "kitti")
    path = other / "training" / "velodyne" / "000001.bin"
    scans.write_points(path, scans.read_points(path) * np.array([-1, 1, 1, 1], np.float32))
    names = ["000000", "000001"]
    assert prepare(other, names, names, CLASSES, tmp_path)["unseen"] == ["000001"]
    assert Frames(other, tmp_path, CLASSES).read("000001").points.shape == (0, 4)
