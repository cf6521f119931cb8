from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.errors import KDBenchError
from kdbench.runs.counts import check
from tasks.pointcloud import scans
from tests.tasks.pointcloud import tiny


def rows(root: Path, change: Callable[[list[str]], list[str]], splits: tuple[str, ...] = ("train", "val")) -> None:
    """Changes the fields of every label but DontCare, of the frames of a split."""
    for split in splits:
        for name in (root / "ImageSets" / f"{split}.txt").read_text().split():
            path = root / "training" / "label_2" / f"{name}.txt"
            fields = [line.split() for line in path.read_text().splitlines()]
            found = [row if row[0] == "DontCare" else change(row) for row in fields]
            path.write_text("".join(" ".join(row) + "\n" for row in found if row))


def p2(root: Path, values: str) -> None:
    for path in (root / "training" / "calib").glob("*.txt"):
        path.write_text(re.sub("P2: .*", f"P2: {values}", path.read_text()))


def lidar_only(row: list[str]) -> list[str]:
    return [row[0], "-1", "-1", row[3], "0", "0", "0", "0", *row[8:]]


def behind(root: Path) -> None:
    for path in (root / "training" / "velodyne").glob("*.bin"):
        scans.write_points(path, scans.read_points(path) * np.array([-1, 1, 1, 1], np.float32))


def unit_camera(root: Path) -> None:
    p2(root, "1 0 0 0 0 1 0 0 0 0 1 0")
    (root / "training" / "image_2").mkdir()
    for path in (root / "training" / "calib").glob("*.txt"):
        Image.new("L", (1242, 375)).save(root / "training" / "image_2" / f"{path.stem}.jpg")


def no_boxes(root: Path) -> None:
    for path in (root / "training" / "label_2").glob("*.txt"):
        path.write_text("")


NOTHING: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zeros for a camera": (lambda root: p2(root, "0 " * 12), r"calib/\d+.txt: P2 projects nothing"),
    "a camera that looks back": (behind, r"no point of 9 scans lies in the camera's view of .*: .* has \d+ points, x "),
    "a camera centred elsewhere": (
        lambda root: p2(root, "1400 0 1900 0 0 1400 1080 0 0 0 1 0"),
        r"there is no image, and the centre \(1900, 1080\) of P2 is not that of KITTI's 1242 x 375",
    ),
    "a unit camera": (
        unit_camera,
        r"P2 projects none of \d+ objects to 25 px",
    ),
    "other classes": (
        lambda root: rows(root, lambda row: ["bus", *row[1:]]),
        r"train holds nothing to learn from \(5 samples, no Pedestrian, Cyclist, Car\): its labels name bus \(20\);",
    ),
    "empty labels": (no_boxes, "train holds nothing to learn from .*: its labels hold no box, DontCare left out"),
    "all DontCare": (
        lambda root: rows(root, lambda row: ["DontCare", *row[1:]]),
        "train holds nothing to learn from .*: its labels hold no box, DontCare left out",
    ),
    "labels of another place": (
        lambda root: rows(root, lambda row: [*row[:13], str(float(row[13]) + 500), row[14]]),
        "train holds nothing to learn from .*: all 15 objects lie outside task.point_range",
    ),
    "labels of another frame": (
        lambda root: rows(root, lambda row: [*row[:12], str(float(row[12]) - 1.75), *row[13:]]),
        "train holds nothing to learn from .*: no object of 15 holds a point in the camera's view",
    ),
    "labels without 2-D boxes": (
        lambda root: rows(root, lidar_only),
        "test holds nothing that map_3d_moderate_r40 counts .*: all 9 objects have no 2-D box, .* data.camera=false",
    ),
    "2-D boxes too low": (
        lambda root: rows(root, lambda row: [*row[:7], str(float(row[5]) + 20), *row[8:]]),
        "test holds nothing .*: all 9 objects have a 2-D box lower than 25 px",
    ),
    "all occluded": (
        lambda root: rows(root, lambda row: [*row[:2], "3", *row[3:]]),
        "test holds nothing .*: all 9 objects are too small, occluded or truncated",
    ),
    "no test labels": (
        lambda root: rows(root, lambda row: [], ("val",)),
        "test holds nothing that map_3d_moderate_r40 counts .*: its labels hold no box",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_data_that_holds_nothing_is_refused_before_anything_trains(tmp_path, case):
    root = tiny.write(tmp_path / "kitti")
    spoil, line = NOTHING[case]
    spoil(root)
    task = tiny.task(root, tmp_path / "cache")

    def begin() -> None:
        task.prepare()
        check(task)

    with pytest.raises(KDBenchError, match=line) as refused:
        begin()
    assert "\n" not in str(refused.value)


def test_counts_are_those_of_the_labels(tmp_path):
    root = tiny.write(tmp_path / "kitti")
    task = tiny.task(root, tmp_path / "cache")
    check(task)
    counts = task.counts()
    assert [found.samples for found in counts.values()] == [5, 1, 3]
    assert counts["train"].labels == {"Pedestrian": 5, "Cyclist": 5, "Car": 5}
    assert counts["test"].judged == {"Pedestrian": 3, "Cyclist": 3, "Car": 3}
    batches = list(tiny.task(root, tmp_path / "cache", {"batch_size": 1}).data(0).test_dataloader())
    assert sum(len(batch.targets["labels"]) for batch in batches) == sum(counts["test"].labels.values())
    rows(root, lambda row: [row[0], row[1], "3" if row[0] == "Car" else row[2], *row[3:]], ("val",))
    counts = tiny.task(root, tmp_path / "cache").counts()
    assert counts["test"].labels["Car"] == 3
    assert counts["test"].judged == {"Pedestrian": 3, "Cyclist": 3, "Car": 0}
    near = tiny.task(root, tmp_path / "cache", point_range=[0.0, -5.12, -3.0, 10.24, 5.12, 1.0]).counts()
    assert near["train"].labels == {"Pedestrian": 5, "Cyclist": 0, "Car": 5}


def test_counts_of_real_labels_are_those_of_the_evaluator(shared_data, tmp_path):
    from tasks.pointcloud import kitti
    from tasks.pointcloud.kitti_ap import valid_counts

    root = shared_data / "kitti"
    task = tiny.task(root, tmp_path / "cache", point_range=[0.0, -40.96, -3.0, 81.92, 40.96, 1.0])
    names = kitti.read_split(root, "val")
    truth = [kitti.read_objects(root / "training" / "label_2" / f"{name}.txt") for name in names]
    expected = {name: levels["moderate"] for name, levels in valid_counts(truth).items()}
    assert dict(task.counts()["test"].judged) == expected
