from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.errors import KDBenchError
from tasks.pointcloud import frames as module
from tasks.pointcloud import scans
from tests.tasks.pointcloud import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("kitti") / "tiny")


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def nan_points(path: Path) -> None:
    points = scans.read_points(path)
    points[5, 1] = np.nan
    scans.write_points(path, points)


def without_p2(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("P2")))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/file")


def long_name(root: Path) -> None:
    name = "20110926123456789012345"
    for path in (root / "training").glob("*/000001.*"):
        path.rename(path.with_stem(name))
    split = root / "ImageSets" / "train.txt"
    split.write_text(split.read_text().replace("000001", name))


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing scan": (
        lambda root: (root / "training/velodyne/000001.bin").unlink(),
        r"frame 000001 of .*train.txt: label without scan; expected training/velodyne/000001.bin",
    ),
    "dangling scan": (
        lambda root: dangling(root / "training/velodyne/000001.bin"),
        r"velodyne/000001.bin: cannot be read \(No such file or directory\)$",
    ),
    "dangling label": (
        lambda root: dangling(root / "training/label_2/000001.txt"),
        r"cannot digest .*label_2/000001.txt as a file .*No such file or directory",
    ),
    "label that is no text": (
        lambda root: (root / "training/label_2/000001.txt").write_bytes(b"\xff\xfe Car"),
        r"label_2/000001.txt: cannot read this label file .*; expected KITTI's text format",
    ),
    "calibration that is no text": (
        lambda root: (root / "training/calib/000001.txt").write_bytes(b"\xff\xfe P2"),
        r"calib/000001.txt: cannot read this calibration file .*; expected KITTI's text format",
    ),
    "folder for a label": (
        lambda root: into_folder(root / "training/label_2/000001.txt"),
        r"cannot digest .*label_2/000001.txt as a file .*Is a directory",
    ),
    "folder for a scan": (
        lambda root: into_folder(root / "training/velodyne/000001.bin"),
        r"cannot digest .*velodyne/000001.bin as a file .*Is a directory",
    ),
    "truncated scan": (
        lambda root: (root / "training/velodyne/000001.bin").write_bytes(bytes(35)),
        r"000001.bin: 35 bytes; expected a multiple of 16",
    ),
    "empty scan": (
        lambda root: (root / "training/velodyne/000007.bin").write_bytes(b""),
        r"000007.bin: 0 bytes; expected a multiple of 16",
    ),
    "NaN": (
        lambda root: nan_points(root / "training/velodyne/000001.bin"),
        r"000001.bin: 1 of \d+ points hold NaN or infinity, first at 5",
    ),
    "missing field": (
        lambda root: (root / "training/label_2/000001.txt").write_text("Car 0 0 1.5 1 2 30 40 1.5 1.6 3.9 1 2 8\n"),
        r"000001.txt:1: 14 fields; expected 15 for a label",
    ),
    "word for a number": (
        lambda root: (root / "training/label_2/000007.txt").write_text("Car 0 0 a 1 2 30 40 1.5 1.6 3.9 1 2 8 0\n"),
        r"000007.txt:1: 'a' is not a finite number",
    ),
    "no P2": (
        lambda root: without_p2(root / "training/calib/000001.txt"),
        r"calib/000001.txt: no P2; a KITTI calibration file holds P2, R0_rect, Tr_velo_to_cam",
    ),
    "no calibration": (
        lambda root: (root / "training/calib/000001.txt").unlink(),
        r"frame 000001 of .*: no calibration; expected training/calib/000001.txt",
    ),
    "no label": (
        lambda root: (root / "training/label_2/000007.txt").unlink(),
        r"frame 000007 of .*val.txt: scan without label",
    ),
    "unknown frame": (
        lambda root: (root / "ImageSets/train.txt").write_text("000000\n000001\n000099\n"),
        r"frame 000099 of .*train.txt: no scan; expected training/velodyne/000099.bin",
    ),
    "no split": (
        lambda root: (root / "ImageSets/val.txt").unlink(),
        r"val.txt: no such split; ImageSets holds train; is data.root a folder in KITTI's layout",
    ),
    "broken image": (
        lambda root: (folder(root / "training/image_2") / "000001.png").write_bytes(b"no"),
        r"000001.png: not a readable image",
    ),
    "dangling image": (
        lambda root: (folder(root / "training/image_2") / "000001.jpg").symlink_to("/nowhere/file"),
        r"000001.jpg: not a readable image \(No such file or directory\)",
    ),
    "folder for an image": (
        lambda root: folder(folder(root / "training/image_2") / "000001.png"),
        r"000001.png: not a readable image \(Is a directory\)",
    ),
    "dangling calibration": (
        lambda root: dangling(root / "training/calib/000001.txt"),
        r"calib/000001.txt.*No such file or directory",
    ),
    "folder for a calibration": (
        lambda root: into_folder(root / "training/calib/000001.txt"),
        r"calib/000001.txt.*Is a directory",
    ),
    "dangling split": (
        lambda root: dangling(root / "ImageSets/val.txt"),
        r"ImageSets/val.txt: no such split file; expected a file in KITTI's layout",
    ),
    "folder for a split": (
        lambda root: into_folder(root / "ImageSets/val.txt"),
        r"ImageSets/val.txt: cannot read this split file \(Is a directory\)",
    ),
    "split that is no text": (
        lambda root: (root / "ImageSets/val.txt").write_bytes("000006\u00e9".encode("latin1")),
        r"ImageSets/val.txt: cannot read this split file \(no UTF-8 text, at byte 6\)",
    ),
    "file for a folder": (
        lambda root: (root / "training/label_2").rename(root / "training/gone").with_name("label_2").touch(),
        r"training/label_2: cannot list this folder \(Not a directory\)",
    ),
    "label in another alphabet": (
        lambda root: (root / "training/label_2/000001.txt").write_bytes("Fu\u00dfg\u00e4nger".encode("latin1")),
        r"label_2/000001.txt: cannot read this label file \(no UTF-8 text, at byte 2\)",
    ),
    "label of Windows in two bytes": (
        lambda root: (root / "training/label_2/000001.txt").write_bytes("Car 0".encode("utf-16")),
        r"label_2/000001.txt: cannot read this label file \(UTF-16 text: save it as UTF-8\)",
    ),
}


def nothing_half_written(cache: Path) -> bool:
    frames = cache / "kitti-frames"  # beside the digest of the scans, which is whole
    return not [p for p in frames.glob("*") if p.suffix != ".work"] and not list(frames.rglob("manifest.json"))


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_one_line_and_leave_no_product(case, tmp_path):
    root = tiny.write(tmp_path / "kitti")
    spoil, line = BAD[case]
    spoil(root)
    made = tiny.task(root, tmp_path / "cache")
    with pytest.raises(KDBenchError, match=line) as error:
        made.prepare()
    assert "\n" not in str(error.value)
    assert nothing_half_written(tmp_path / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
@pytest.mark.parametrize("closed", ["velodyne/000001.bin", "label_2/000001.txt", "calib/000001.txt", "label_2"])
def test_what_may_not_be_read_is_one_line(tmp_path, closed):
    root = tiny.write(tmp_path / "kitti")
    path = root / "training" / closed
    path.chmod(0)
    try:
        with pytest.raises(KDBenchError, match=f"{closed}.*Permission denied") as error:
            tiny.task(root, tmp_path / "cache").prepare()
    finally:
        path.chmod(0o700)
    assert "\n" not in str(error.value)


def test_a_long_number_is_a_frame_as_well(tmp_path):
    root = tiny.write(tmp_path / "kitti", 3, 1)
    long_name(root)
    made = tiny.task(root, tmp_path / "cache")
    assert [len(batch) for batch in made.data(0).train_dataloader()] == [2]


def test_a_mended_folder_is_prepared_after_all(tmp_path):
    root = tiny.write(tmp_path / "kitti")
    path = root / "training" / "velodyne" / "000001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    made = tiny.task(root, tmp_path / "cache")
    with pytest.raises(KDBenchError):
        made.prepare()
    path.write_bytes(whole)
    made.prepare()
    assert made.dataset().sizes == {"train": 5, "val": 1, "test": 3}


def test_no_such_root(tmp_path):
    with pytest.raises(KDBenchError, match=r"data.root=.*nowhere: there is no such folder, expected KITTI's layout"):
        tiny.task(tmp_path / "nowhere", tmp_path / "cache").prepare()
    (tmp_path / "file").touch()
    with pytest.raises(KDBenchError, match="there is no such folder"):
        tiny.task(tmp_path / "file", tmp_path / "cache").prepare()
    with pytest.raises(KDBenchError, match=r"train.txt: no such split; ImageSets holds nothing"):
        tiny.task(tmp_path, tmp_path / "cache").prepare()
    assert nothing_half_written(tmp_path / "cache")


def test_disk_full_while_preparing(root, tmp_path, monkeypatch):
    calls = []

    def full(path: Any, values: np.ndarray) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        np.lib.format.open_memmap(path, "w+", values.dtype, values.shape)[:] = values

    monkeypatch.setattr(module.np, "save", full)
    made = tiny.task(root, tmp_path / "cache")
    with pytest.raises(KDBenchError, match=r"no space left to write below .*cache .* MiB free") as error:
        made.prepare()
    assert "\n" not in str(error.value)
    assert nothing_half_written(tmp_path / "cache")
    monkeypatch.undo()
    made.prepare()
    assert made.dataset().sizes["train"] == 5
