from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti, scans

LABEL = "Car 0.00 1 -1.33 597.59 176.18 720.90 261.14 1.47 1.60 3.66 1.07 1.55 14.44 -1.25\n"
DONTCARE = "DontCare -1 -1 -10 800.38 163.67 825.45 184.07 -1 -1 -1 -1000 -1000 -1000 -10\n"
CALIBRATION = """\
P0: 1 0 0 0 0 1 0 0 0 0 1 0
P2: 720 0 610 45 0 720 173 0.2 0 0 1 0.003
R0_rect: 0.99995 0.0098 -0.0074 -0.0098 0.99995 -0.0043 0.0074 0.0043 0.99996
Tr_velo_to_cam: 0.0075 -0.99997 -0.0006 -0.004 0.0148 0.0007 -0.99989 -0.08 0.99986 0.0075 0.0148 -0.27
"""


@pytest.fixture
def calibration(tmp_path: Path) -> kitti.Calibration:
    path = tmp_path / "calib.txt"
    path.write_text(CALIBRATION)
    return kitti.read_calibration(path)


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Path:
    if not (shared_data / "kitti").is_dir():
        pytest.skip("needs ../shared/data/kitti")
    return shared_data / "kitti"


def random_boxes(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = [5, -15, -1.5, 0.5, 0.5, 1.0, -np.pi], [60, 15, 0.5, 5, 2.5, 2.5, np.pi]
    return rng.uniform(low, high, (count, 7))


def assert_same(a: kitti.Objects, b: kitti.Objects, tolerance: float = 0.0) -> None:
    for field in dataclasses.fields(kitti.Objects):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if left is None or field.name == "types":
            assert np.array_equal(left, right)
        else:
            np.testing.assert_allclose(left, right, rtol=0, atol=tolerance, err_msg=field.name)


def test_import_needs_no_torch():
    code = "import sys, tasks.pointcloud.kitti; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Labels and detections


def test_read_objects_columns(tmp_path):
    path = tmp_path / "label.txt"
    path.write_text(LABEL + "\n" + DONTCARE)
    objects = kitti.read_objects(path)
    assert objects.types.tolist() == ["Car", "DontCare"]
    assert objects.occluded.tolist() == [1, -1]
    assert objects.occluded.dtype == np.int64
    assert objects.truncated.tolist() == [0, -1]
    assert objects.alpha.tolist() == [-1.33, -10]
    assert objects.bbox[0].tolist() == [597.59, 176.18, 720.90, 261.14]
    assert objects.dimensions[0].tolist() == [1.47, 1.60, 3.66]
    assert objects.location[0].tolist() == [1.07, 1.55, 14.44]
    assert objects.rotation_y.tolist() == [-1.25, -10]
    assert objects.score is None


def test_select_and_empty(tmp_path):
    path = tmp_path / "label.txt"
    path.write_text(LABEL + DONTCARE)
    objects = kitti.read_objects(path)
    by_mask, by_index = objects.select(objects.types == "Car"), objects.select(np.array([0]))
    assert len(by_mask) == 1
    assert_same(by_mask, by_index)
    path.write_text("\n")
    for scored in (False, True):
        empty = kitti.Objects.empty(scored)
        assert len(empty) == 0
        assert (empty.score is not None) == scored
        assert_same(empty, kitti.read_objects(path, scored))
        assert empty.bbox.shape == (0, 4)


def test_detections_survive_writing(tmp_path, calibration):
    boxes = random_boxes(40)
    scores = np.random.default_rng(1).random(40)
    detections, kept = kitti.boxes_to_objects(boxes, np.full(40, "Car"), scores, calibration, (1242, 375))
    path = tmp_path / "detections.txt"
    kitti.write_objects(path, detections)
    assert all(len(line.split()) == 16 for line in path.read_text().splitlines())
    read = kitti.read_objects(path, scored=True)
    assert_same(read, detections, tolerance=1e-6)
    assert read.score is not None
    np.testing.assert_allclose(read.score, scores[kept], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "scored", "said"),
    [
        (LABEL + LABEL.rsplit(" ", 1)[0] + "\n", False, r"label.txt:2: 14 fields; expected 15"),
        (LABEL, True, r"label.txt:1: 15 fields; expected 16"),
        (LABEL + "\n" + LABEL.replace("14.44", "far"), False, r"label.txt:3: 'far' is not a finite number"),
        (LABEL.replace("1.07", "nan"), False, r"label.txt:1: 'nan' is not a finite number"),
        (LABEL.replace("1.07", "inf"), False, r"label.txt:1: 'inf' is not a finite number"),
    ],
)
def test_bad_label_names_file_and_line(tmp_path, text, scored, said):
    path = tmp_path / "label.txt"
    path.write_text(text)
    with pytest.raises(KDBenchError, match=said) as caught:
        kitti.read_objects(path, scored)
    assert "\n" not in str(caught.value)


def test_missing_and_binary_label(tmp_path):
    with pytest.raises(KDBenchError, match=r"absent.txt: no such label file"):
        kitti.read_objects(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(KDBenchError, match=r"binary.txt: cannot read"):
        kitti.read_objects(tmp_path / "binary.txt")


def test_difficulty_by_kitti_rule():
    #        height occluded truncated level
    cases = [
        (40.01, 0, 0.15, 0),
        (40.00, 0, 0.00, 1),  # the height has to be exceeded
        (50.00, 1, 0.00, 1),
        (50.00, 0, 0.30, 1),
        (26.00, 2, 0.50, 2),
        (50.00, 0, 0.51, -1),
        (50.00, 3, 0.00, -1),
        (25.00, 0, 0.00, -1),
    ]
    height, occluded, truncated, level = (np.array(column) for column in zip(*cases, strict=True))
    count = len(cases)
    objects = dataclasses.replace(
        kitti.Objects.empty(),
        types=np.full(count, "Car"),
        bbox=np.column_stack([np.zeros(count), np.full(count, 7.0), np.ones(count), 7.0 + height]),
        occluded=occluded,
        truncated=truncated,
    )
    assert kitti.difficulty(objects).tolist() == level.tolist()
    assert set(kitti.difficulty(dataclasses.replace(objects, types=np.full(count, "DontCare")))) == {-1}


# Calibration


def test_calibration_inverts_and_survives_writing(tmp_path, calibration):
    xyz = np.random.default_rng(0).uniform(-50, 50, (100, 3))
    camera = calibration.lidar_to_camera(xyz)
    np.testing.assert_allclose(calibration.camera_to_lidar(camera), xyz, atol=1e-9)
    by_hand = [calibration.r0 @ (calibration.velo_to_cam[:, :3] @ p + calibration.velo_to_cam[:, 3]) for p in xyz]
    np.testing.assert_allclose(camera, by_hand, atol=1e-9)
    kitti.write_calibration(tmp_path / "again.txt", calibration)
    again = kitti.read_calibration(tmp_path / "again.txt")
    for name in ("p2", "r0", "velo_to_cam"):
        np.testing.assert_allclose(getattr(again, name), getattr(calibration, name), rtol=1e-12)
    keys = [line.split(":")[0] for line in (tmp_path / "again.txt").read_text().splitlines()]
    assert keys == ["P0", "P1", "P2", "P3", "R0_rect", "Tr_velo_to_cam", "Tr_imu_to_velo"]


def test_project(calibration):
    pixels, depth = calibration.project(np.array([[1.0, 2.0, 10.0]]))
    w = 10 + 0.003
    expected = [(720 * 1 + 610 * 10 + 45) / w, (720 * 2 + 173 * 10 + 0.2) / w]
    np.testing.assert_allclose(pixels, [expected])
    np.testing.assert_allclose(depth, [w])


@pytest.mark.parametrize("key", ["P2", "R0_rect", "Tr_velo_to_cam"])
def test_bad_calibration(tmp_path, key):
    path = tmp_path / "calib.txt"
    lines = CALIBRATION.splitlines(keepends=True)
    line = next(line for line in lines if line.startswith(key))
    cases = {
        rf"no {key}": CALIBRATION.replace(line, ""),
        rf":\d: {key} has \d+ values": CALIBRATION.replace(line, line.rsplit(" ", 1)[0] + "\n"),
        rf":\d: {key} holds 'nan'": CALIBRATION.replace(line, line.rsplit(" ", 1)[0] + " nan\n"),
    }
    for said, text in cases.items():
        path.write_text(text)
        with pytest.raises(KDBenchError, match=said):
            kitti.read_calibration(path)


@pytest.mark.parametrize("p2", ["0 " * 12, "1 " * 12, "700 0 600 0 0 700 180 0 0 0 0 0"])
def test_a_camera_that_projects_nothing_is_refused_and_not_read_where_there_is_none(tmp_path, p2, calibration):
    path = tmp_path / "calib.txt"
    path.write_text(re.sub("P2: .*", f"P2: {p2}", CALIBRATION))
    with pytest.raises(KDBenchError, match=r"calib.txt: P2 projects nothing, .* data.camera=false for data"):
        kitti.read_calibration(path)
    assert np.array_equal(kitti.read_calibration(path, camera=False).lidar_to_rectified, calibration.lidar_to_rectified)
    path.write_text(re.sub("P2: .*", "", CALIBRATION))
    assert np.array_equal(kitti.read_calibration(path, camera=False).r0, calibration.r0)


def test_without_a_camera_every_box_becomes_a_row(calibration):
    boxes = random_boxes(40) * [-1, 1, 1, 1, 1, 1, 1]  # behind
    objects, kept = kitti.boxes_to_objects(boxes, np.full(40, "Car"), np.ones(40), calibration, None)
    assert kept.tolist() == list(range(40))
    assert set((objects.bbox[:, 3] - objects.bbox[:, 1]).tolist()) == {100.0}
    np.testing.assert_allclose(kitti.objects_to_boxes(objects, calibration), boxes, atol=1e-9)
    points = np.random.default_rng(0).uniform(-50, 50, (9, 3))
    np.testing.assert_allclose(kitti.AXES.camera_to_lidar(kitti.AXES.lidar_to_camera(points)), points, atol=1e-12)
    assert kitti.AXES.lidar_to_camera(np.array([[1.0, 2, 3]])).tolist() == [[-2, -3, 1]]


def test_rows_that_can_hardly_be_meant_are_noted_with_file_and_line(tmp_path):
    odd = kitti.Oddities()
    for name, text in (
        ("a", LABEL + DONTCARE),
        ("b", "\n" + LABEL + LABEL.replace("1.47", "0") + LABEL.replace("1.60", "-1.6") + DONTCARE),
        ("c", LABEL.replace("-1.25", "-90") + LABEL.replace("-1.33", "45") + LABEL.replace("-1.33", "-10")),
        ("d", LABEL.replace("720.90", "97.59") + LABEL.replace("597.59 176.18 720.90 261.14", "0 0 0 0")),
    ):
        (tmp_path / f"{name}.txt").write_text(text)
        kitti.read_objects(tmp_path / f"{name}.txt", odd=odd)
    assert odd.lines() == [
        f"{tmp_path}/b.txt:3: a size that is not above 0 (height, width, length), and 1 further such",
        f"{tmp_path}/c.txt:1: a rotation beyond a full turn (degrees? KITTI's are radians)",
        f"{tmp_path}/c.txt:2: an alpha beyond a full turn (degrees? KITTI's are radians)",
        f"{tmp_path}/d.txt:1: a 2-D box whose right or bottom is not beyond its left or top, and 1 further such",
    ]


def test_singular_calibration(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("P2: 1 0 0 0 0 1 0 0 0 0 1 0" + "\nR0_rect: " + "0 " * 9 + "\nTr_velo_to_cam: " + "1 " * 12)
    with pytest.raises(KDBenchError, match="not a rotation"):
        kitti.read_calibration(path)


# Images


def test_in_camera_view_agrees_with_projection(calibration):
    points = np.random.default_rng(0).uniform([-60, -60, -5, 0], [60, 60, 5, 1], (20000, 4)).astype(np.float32)
    pixels, depth = calibration.project(calibration.lidar_to_camera(points[:, :3]))
    expected = (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < [1242, 375]).all(axis=1)
    seen = kitti.in_camera_view(points, calibration, (1242, 375))
    assert 0 < expected.sum() < len(points)
    assert (seen != expected).sum() <= 2  # float32 at the very border


def test_image_size(tmp_path, calibration):
    assert kitti.image_size(tmp_path, "000000", calibration) == (1242, 375)
    assert kitti.image_size(tmp_path, "000000", calibration, (1000, 300)) == (1000, 300)
    for frame, suffix in enumerate((".png", ".jpg", ".JPEG", ".bmp")):
        Image.new("RGB", (1224, 370 - frame)).save(tmp_path / f"{frame:06d}{suffix}")
        assert kitti.image_size(tmp_path, f"{frame:06d}", calibration, (1000, 300)) == (1224, 370 - frame)


def test_an_image_that_cannot_be_read_is_one_line(tmp_path, calibration):
    (tmp_path / "000001.png").write_bytes(b"not an image")
    (tmp_path / "000002.jpg").symlink_to("/nowhere/file")
    (tmp_path / "000003.png").mkdir()
    for frame, said in (
        ("000001", r"000001.png: not a readable image; expected a whole png or jpg"),
        ("000002", r"000002.jpg: not a readable image \(No such file or directory\)"),
        ("000003", r"000003.png: not a readable image \(Is a directory\)"),
    ):
        with pytest.raises(KDBenchError, match=said):
            kitti.image_size(tmp_path, frame, calibration)


@pytest.mark.parametrize("centre", [(960.0, 540.0), (320.0, 240.0), (610.0, 360.0), (0.0, 0.0)])
def test_kittis_size_is_not_assumed_of_another_camera(tmp_path, calibration, centre):
    p2 = calibration.p2.copy()
    p2[:2, 2] = centre
    other = dataclasses.replace(calibration, p2=p2)
    with pytest.raises(KDBenchError, match=r"000000.png: there is no image, and the centre .* data.image_size=\[WIDTH"):
        kitti.image_size(tmp_path, "000000", other)
    assert kitti.image_size(tmp_path, "000000", other, (1920, 1080)) == (1920, 1080)


# As other programs write text

AS_WRITTEN: dict[str, Callable[[str], bytes]] = {
    "byte-order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "Windows": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "blank lines": lambda text: ("\n \n" + text.replace("\n", "\n\n")).encode(),
    "trailing spaces": lambda text: text.replace("\n", "  \n").encode(),
    "tabs": lambda text: text.replace(" ", "\t").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
    "lower case": lambda text: text.lower().encode(),
    "upper case": lambda text: text.upper().encode(),
    "all of it": lambda text: b"\xef\xbb\xbf\r\n" + text.lower().replace(" ", "\t").replace("\n", " \r\n").encode(),
}


@pytest.mark.parametrize("way", AS_WRITTEN)
def test_every_text_is_read_alike_however_it_was_written(tmp_path, way, calibration):
    label, detection, matrices, frames = (tmp_path / name for name in ("label.txt", "det.txt", "calib.txt", "list.txt"))
    write = AS_WRITTEN[way]
    label.write_bytes(write(LABEL + DONTCARE + LABEL.replace("Car", "Person_sitting")))
    objects = kitti.read_objects(label)
    assert objects.types.tolist() == ["Car", "DontCare", "Person_sitting"]
    assert objects.location[:, 2].tolist() == [14.44, -1000, 14.44]
    detection.write_bytes(write(LABEL.replace("-1.25", "-1.25 0.9") * 2))
    assert kitti.read_objects(detection, scored=True).score == pytest.approx([0.9, 0.9])
    first, *others = CALIBRATION.splitlines(keepends=True)
    matrices.write_bytes(write("".join([*others, first])))  # the mark stands before what is read
    again = kitti.read_calibration(matrices)
    for field in dataclasses.fields(kitti.Calibration):
        assert np.array_equal(getattr(again, field.name), getattr(calibration, field.name))
    frames.write_bytes(write("000003\n000001\n"))
    assert kitti.read_frames(frames) == ["000003", "000001"]


def test_names_of_ones_own_classes_stay_as_they_are(tmp_path):
    path = tmp_path / "label.txt"
    path.write_text(LABEL.replace("Car", "bus") + LABEL.replace("Car", "BUS"))
    assert kitti.read_objects(path).types.tolist() == ["bus", "BUS"]


# Boxes


def test_boxes_round_trip(calibration):
    boxes = random_boxes(200)
    objects, kept = kitti.boxes_to_objects(boxes, np.full(200, "Van"), None, calibration, (1242, 375))
    assert 100 < len(kept) < 200
    assert set(objects.types) == {"Van"}
    assert objects.score is None
    np.testing.assert_allclose(kitti.objects_to_boxes(objects, calibration), boxes[kept], atol=1e-9)


def test_yaw_is_counter_clockwise_from_ahead(calibration):
    # rotation_y is 0 for a heading to the right (camera x) and -pi/2 for one straight ahead.
    rows = [LABEL.replace("-1.25", str(ry)).split() for ry in (-np.pi / 2, 0.0)]
    table = np.array([row[1:] for row in rows], dtype=float)
    objects = kitti._from_table(np.array(["Car", "Car"]), table)
    np.testing.assert_allclose(kitti.objects_to_boxes(objects, calibration)[:, 6], [0, -np.pi / 2], atol=1e-9)


def surface(box: np.ndarray, steps: int = 60) -> np.ndarray:
    """Points on the edges of a box, made without the code under test."""
    t = np.linspace(-0.5, 0.5, steps)
    ends = [-0.5, 0.5]
    unit = [(s, a, b) for s in t for a in ends for b in ends]
    unit += [(a, s, b) for s in t for a in ends for b in ends] + [(a, b, s) for s in t for a in ends for b in ends]
    local = np.array(unit) * box[3:6]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return local @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]).T + box[:3]


def test_projected_box_encloses_the_edges(calibration):
    for box in random_boxes(10, seed=3):
        pixels, _ = calibration.project(calibration.lidar_to_camera(surface(box)))
        expected = [*pixels.min(axis=0), *pixels.max(axis=0)]
        np.testing.assert_allclose(kitti.project_boxes(box[None], calibration)[0], expected, atol=1e-6)


def test_box_through_the_camera_plane(calibration):
    box = np.array([1.5, 2.5, -0.8, 6.0, 1.6, 1.5, 0.2])  # beside the camera: part of it lies behind
    xyz = calibration.lidar_to_camera(surface(box, steps=20001))
    ahead = xyz[xyz[:, 2] >= kitti.NEAR]
    assert 0 < len(ahead) < len(xyz)
    pixels, _ = calibration.project(ahead)
    expected = np.array([*pixels.min(axis=0), *pixels.max(axis=0)])
    np.testing.assert_allclose(kitti.project_boxes(box[None], calibration)[0], expected, rtol=0.01, atol=1)
    objects, kept = kitti.boxes_to_objects(box[None], np.array(["Car"]), None, calibration, (1242, 375))
    assert kept.tolist() == [0]
    assert (objects.bbox >= 0).all()
    assert (objects.bbox <= [1241, 374, 1241, 374]).all()


def test_boxes_out_of_view_are_dropped(calibration):
    boxes = np.array(
        [
            [-20.0, 0, -0.8, 4, 1.6, 1.5, 0],  # behind
            [20.0, 0, -0.8, 4, 1.6, 1.5, 0],
            [10.0, 40, -0.8, 4, 1.6, 1.5, 0],  # beside the image
            [10.0, 0, 30, 4, 1.6, 1.5, 0],  # above it
        ]
    )
    names = np.array(["a", "b", "c", "d"])
    objects, kept = kitti.boxes_to_objects(boxes, names, np.arange(4.0), calibration, (1242, 375))
    assert kept.tolist() == [1]
    assert objects.types.tolist() == ["b"]
    assert objects.score is not None
    assert objects.score.tolist() == [1.0]
    assert np.isnan(kitti.project_boxes(boxes[:1], calibration)).all()
    nothing, kept = kitti.boxes_to_objects(np.empty((0, 7)), np.array([]), np.array([]), calibration, (1242, 375))
    assert len(nothing) == len(kept) == 0


def test_clip_to_image():
    rectangles = np.array([[-10.0, 10, 10, 20], [5, 5, 15, 15], [2000, 5, 2010, 15], [np.nan] * 4])
    clipped, cut = kitti.clip_to_image(rectangles, (101, 51))
    assert clipped[0].tolist() == [0, 10, 10, 20]
    np.testing.assert_allclose(cut, [0.5, 0, 1, 1])


# Splits


def kitti_folder(root: Path, frames: list[str]) -> Path:
    for folder, suffix in (("velodyne", ".bin"), ("label_2", ".txt"), ("calib", ".txt")):
        (root / "training" / folder).mkdir(parents=True)
        for frame in frames:
            (root / "training" / folder / f"{frame}{suffix}").touch()
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("\n".join(frames) + "\n")
    return root


def test_read_split(tmp_path):
    root = kitti_folder(tmp_path, ["000003", "000001"])
    assert kitti.read_split(root, "train") == ["000003", "000001"]
    with pytest.raises(KDBenchError, match=r"val.txt: no such split; ImageSets holds train"):
        kitti.read_split(root, "val")


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("velodyne/000001.bin", "frame 000001 .*: label without scan"),
        ("label_2/000001.txt", "frame 000001 .*: scan without label"),
        ("calib/000001.txt", "frame 000001 .*: no calibration"),
    ],
)
def test_split_frame_without_a_file(tmp_path, gone, said):
    root = kitti_folder(tmp_path, ["000000", "000001"])
    (root / "training" / gone).unlink()
    with pytest.raises(KDBenchError, match=said):
        kitti.read_split(root, "train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("000000\n000000\n", "frame 000000 is named 2 times"),
        ("\n", "names no frame"),
        ("../../etc/passwd\n", "'../../etc/passwd' is not a frame"),
    ],
)
def test_bad_split_file(tmp_path, text, said):
    root = kitti_folder(tmp_path, ["000000"])
    (root / "ImageSets" / "train.txt").write_text(text)
    with pytest.raises(KDBenchError, match=said):
        kitti.read_split(root, "train")


# Real frames


def test_real_frames(real):
    inside = boxes_seen = 0
    errors = []
    for frame in kitti.read_split(real, "train") + kitti.read_split(real, "val"):
        objects = kitti.read_objects(real / "training" / "label_2" / f"{frame}.txt")
        calibration = kitti.read_calibration(real / "training" / "calib" / f"{frame}.txt")
        points = scans.read_points(real / "training" / "velodyne" / f"{frame}.bin")
        size = kitti.image_size(real / "training" / "image_2", frame, calibration)
        seen = kitti.in_camera_view(points, calibration, size).sum()
        assert 15_000 < seen < 21_000
        objects = objects.select(objects.types != "DontCare")
        boxes = kitti.objects_to_boxes(objects, calibration)
        again, kept = kitti.boxes_to_objects(boxes, objects.types, None, calibration, size)
        assert kept.tolist() == list(range(len(objects)))
        np.testing.assert_allclose(again.location, objects.location, atol=1e-9)
        np.testing.assert_allclose(again.rotation_y, objects.rotation_y, atol=1e-9)
        assert np.array_equal(again.dimensions, objects.dimensions)
        assert np.abs(kitti.wrap_angle(again.alpha - objects.alpha)).max() < 0.04
        errors.append(np.abs(again.bbox - objects.bbox)[objects.truncated == 0])
        for box in boxes[objects.occluded == 0]:
            local = points[:, :3] - box[:3]
            cos, sin = np.cos(box[6]), np.sin(box[6])
            local = np.column_stack([local @ [cos, sin, 0], local @ [-sin, cos, 0], local[:, 2]])
            inside += bool((np.abs(local) < box[3:6] / 2).all(axis=1).any())
            boxes_seen += 1
    assert np.median(np.concatenate(errors)) < 0.5  # pixels, against boxes drawn by hand
    assert boxes_seen > 30
    assert inside >= boxes_seen - 2  # a tram 91 m away holds no point


def test_oracle_files_parse(shared_data):
    folder = shared_data / "kitti_eval_oracle"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/kitti_eval_oracle")
    truth = [kitti.read_objects(path) for path in sorted((folder / "gt").rglob("*.txt"))]
    found = [kitti.read_objects(path, scored=True) for path in sorted((folder / "dets").rglob("*.txt"))]
    assert len(truth) == 27
    assert sum(map(len, found)) == 206
