"""Scans without a camera, of another layout, beside another sensor's calibration, with odd labels."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.runs.counts import check as check_counts
from tasks.pointcloud import scans
from tests.tasks.pointcloud import tiny

TAPS = {"bev": "backbone[-1]", "neck": "neck"}
ANCHORS = (tiny.GRID // 2) ** 2 * 3 * 2


def without_boxes(root: Path) -> Path:
    """Labels as a LiDAR alone gives them: no 2-D box, occlusion and truncation unknown; a camera of zeros."""
    for path in (root / "training" / "label_2").glob("*.txt"):
        rows = [line.split() for line in path.read_text().splitlines() if not line.startswith("DontCare")]
        path.write_text("".join(" ".join([r[0], "-1", "-1", r[3], "0", "0", "0", "0", *r[8:]]) + "\n" for r in rows))
    for path in (root / "training" / "calib").glob("*.txt"):
        path.write_text(re.sub("P2: .*", "P2: " + "0 " * 12, path.read_text()))
    return root


def test_without_a_camera_perfect_detections_score_100_in_space_alone(tmp_path, monkeypatch, made):
    root = without_boxes(tiny.write(tmp_path / "kitti"))
    task = tiny.task(root, tmp_path / "cache", {"camera": False})
    check_counts(task)
    assert task.dataset().name == "kitti-no-camera"
    values = tiny.scored(task, None, monkeypatch)
    for name in ("map", "car", "pedestrian", "cyclist"):
        for metric in ("3d", "bev"):
            assert values[f"{name}_{metric}_moderate_all"] == pytest.approx(100)
            assert f"{name}_{metric}_easy_r40" not in values
    assert task.primary in values
    assert not [name for name in values if "_2d_" in name or "aos" in name]
    assert tiny.scored(task, None, monkeypatch, drop=1)["map_3d_moderate_all"] < 100
    batch = tiny.first(task)
    assert len(batch.inputs["points"]) > len(tiny.first(made).inputs["points"])


def test_without_a_camera_what_lies_outside_the_range_is_neither_missed_nor_learnt(tmp_path, monkeypatch):
    root = without_boxes(tiny.write(tmp_path / "kitti"))
    near = tiny.task(root, tmp_path / "cache", {"camera": False}, point_range=[0.0, -5.12, -3.0, 10.24, 5.12, 1.0])
    assert near.counts()["test"].judged == {"Pedestrian": 3, "Cyclist": 0, "Car": 3}
    assert tiny.scored(near, None, monkeypatch)["map_3d_moderate_all"] == pytest.approx(100)


def test_what_recorded_the_data_is_part_of_what_it_is(root, made, tmp_path):
    digests = {made.dataset().digest}
    for options in ({"camera": False}, {"image_size": [1224, 370]}):
        digests.add(tiny.task(root, tmp_path, options).dataset().digest)
    assert len(digests) == 3
    assert tiny.task(root, tmp_path, {"scan": {"columns": 4, "unit": 1.0}}).dataset().digest == made.dataset().digest
    with pytest.raises(KDBenchError, match=r"data.scan.colums: unknown key: did you mean 'columns'"):
        tiny.task(root, tmp_path, {"scan": {"colums": 5}})
    with pytest.raises(KDBenchError, match=r"data.scan.dtype: found 'int8'; input should be 'float32' or 'float64'"):
        tiny.task(root, tmp_path, {"scan": {"dtype": "int8"}})


def test_scans_of_another_layout_train_and_are_predicted_by_the_same_option(root, made, tmp_path):
    other = shutil.copytree(root, tmp_path / "kitti")
    for path in (other / "training" / "velodyne").glob("*.bin"):
        points = scans.read_points(path)
        table = np.column_stack([points[:, :3] * 1000, points[:, 3] * 255, np.arange(len(points)) % 64])
        table.astype("<f8").tofile(path)
    with pytest.raises(KDBenchError, match="with data.scan.columns=5 data.scan.dtype=float64 data.scan.unit"):
        tiny.task(other, tmp_path / "cache").prepare()
    layout = {"columns": 5, "dtype": "float64", "unit": 0.001, "intensity": 255}
    task = tiny.task(other, tmp_path / "cache", {"scan": layout})
    for ours, theirs in (
        (tiny.first(task), tiny.first(made)),
        (task.read(other / "training/velodyne/000001.bin"), made.read(root / "training/velodyne/000001.bin")),
    ):
        torch.testing.assert_close(ours.inputs["points"], theirs.inputs["points"], rtol=1e-5, atol=1e-5)
    with pytest.raises(KDBenchError, match="read as 4 float32 a point"):
        made.read(other / "training" / "velodyne" / "000001.bin")


def test_a_scan_beside_another_sensors_calibration_is_not_predicted(made, root, tmp_path):
    for folder, name in (("velodyne", "000001.bin"), ("calib", "000001.txt")):
        (tmp_path / folder).mkdir()
        shutil.copy(root / "training" / folder / name, tmp_path / folder)
    path = tmp_path / "velodyne" / "000001.bin"
    scans.write_points(path, scans.read_points(path) * np.array([-1, 1, 1, 1], np.float32))
    with pytest.raises(KDBenchError, match=r"no point lies in the camera's view by .*calib/000001.txt"):
        made.read(path)


def test_a_camera_that_sees_next_to_nothing_is_said(tmp_path, caplog):
    root = tiny.write(tmp_path / "kitti")
    for path in (root / "training" / "calib").glob("*.txt"):
        path.write_text(re.sub("P2: .*", "P2: 9000 0 600 0 0 9000 180 0 0 0 1 0", path.read_text()))
    tiny.task(root, tmp_path / "cache").prepare()
    assert re.search(r"0\.\d\d% of all points lie in the camera's view; are P2 and Tr_velo_to_cam", caplog.text)


def test_odd_labels_are_said_in_every_run(tmp_path, caplog):
    root = tiny.write(tmp_path / "kitti")
    path = root / "training" / "label_2" / "000007.txt"
    path.write_text(re.sub(r"(?m)^(Car .*) \S+$", r"\1 90", path.read_text()))
    for _ in range(2):
        caplog.clear()
        tiny.task(root, tmp_path / "cache").prepare()
        assert caplog.messages == [f"{path}:1: a rotation beyond a full turn (degrees? KITTI's are radians)"]
