"""Layouts of scans other than KITTI's: they are written in KITTI's once, into the store, and read as that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from kdbench.base.digest import digest, hash_files, source_digest
from kdbench.base.store import Store
from kdbench.errors import KDBenchError
from kdbench.splits import cut
from tasks.pointcloud.nuscenes import NuScenes
from tasks.pointcloud.own import OwnFrames
from tasks.pointcloud.scans import ScanLayout
from tasks.pointcloud.source import Source

Layout = Literal["kitti", "nuscenes", "kitti_like"]
TEST_SHARE = 0.2  # of what is not split


#: What ``data.root`` holds.
EXPECTED = {
    "kitti": "KITTI's layout (training/, ImageSets/)",
    "nuscenes": "nuScenes (v1.0-mini/, samples/)",
    "kitti_like": "velodyne/NAME.bin and label_2/NAME.txt",
}


def check_layout(layout: Layout, root: str | None, camera: bool) -> None:
    """Refuses what a layout cannot be read with."""
    if layout == "kitti":
        return
    if root is None:
        raise KDBenchError(f"data={layout} needs data.root=PATH, a folder that holds {EXPECTED[layout]}")
    if camera:
        raise KDBenchError(f"data={layout} has no camera: leave data.camera=false")


_SOURCES: dict[str, type[Source]] = {"nuscenes": NuScenes, "kitti_like": OwnFrames}


def in_kitti_layout(
    layout: Layout,
    root: Path,
    store: Store,
    scan: ScanLayout,
    classes: Sequence[str],
    names: Mapping[str, str],
    sweeps: int,
) -> Path:
    """Returns a folder in KITTI's layout that holds what ``root`` does in another.

    Args:
        layout: That of ``root``; not KITTI's.
        root: The folder.
        store: Keeps what is written.
        scan: How a file of points is laid out.
        classes: That are detected.
        names: Classes by what the data calls them, where it has names of its own.
        sweeps: Earlier sweeps that each scan is given too, where the data has some.

    Raises:
        KDBenchError: One line on what is missing or malformed.
    """
    source = _SOURCES[layout](root, scan, tuple(classes), dict(names), sweeps)
    files = source.files()
    found = store.of_files(
        f"{layout}-digests", files, lambda: {"files": hash_files(files, root)}, wait_message="the digest of the scans"
    )
    options = [layout, str(root.absolute()), str(scan), scan.intensity, list(classes), dict(names), sweeps]
    key = digest([options, found["files"], source_digest([__name__])])

    def make(work: Path) -> dict[str, int]:
        training = work / "kitti" / "training"
        for folder in ("velodyne", "label_2"):
            (training / folder).mkdir(parents=True, exist_ok=True)
        train, test, groups = source.write(training)
        if not test:
            train, test = _split(train, groups, root)
        sets = work / "kitti" / "ImageSets"
        sets.mkdir(exist_ok=True)
        for name, part in (("train", train), ("val", test)):
            (sets / f"{name}.txt").write_text("".join(f"{frame}\n" for frame in part), encoding="utf-8")
        return {"train": len(train), "test": len(test)}

    return store.product(f"{layout}-as-kitti", key, make, wait_message=f"the scans of {root}").path / "kitti"


def _split(frames: Sequence[str], groups: Mapping[str, str], root: Path) -> tuple[list[str], list[str]]:
    """Cuts a fifth for test by the hash of what frames belong to, themselves where that is nothing."""
    listed = sorted({groups.get(frame, frame) for frame in frames})
    if len(listed) < 2:
        what = "scene" if groups else "frame"
        raise KDBenchError(f"{root}: {len(listed)} {what} in all; expected at least 2, as a fifth of them is for test")
    held = {listed[i] for i in cut(listed, TEST_SHARE, "test")}
    return tuple([f for f in frames if (groups.get(f, f) in held) == wanted] for wanted in (False, True))  # type: ignore[return-value]
