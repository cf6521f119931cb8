"""Frames of a KITTI-layout folder, prepared once.

Preparing crops each scan to the camera's view where there is a camera, fits its ground, writes down what the labels
hold, and cuts the training objects out for ground-truth sampling. Embedded data is simulated in KITTI's layout first
and takes the same way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.base.digest import digest, hash_files
from kdbench.base.store import Store, write_atomic
from kdbench.errors import KDBenchError
from tasks.pointcloud import kitti
from tasks.pointcloud.database import Columns, Database, points_in_boxes
from tasks.pointcloud.scans import ScanLayout, ranges, read_points
from tasks.pointcloud.transforms import fit_ground

DATABASE = "database.npz"
GROUND = "ground.json"
CONTENTS = "contents.npz"

#: Points of an object from which on it counts as moderate and as hard without a camera: LEVEL_1 and LEVEL_2 of Waymo's
#: open data set (Sun et al., CVPR 2020).
MODERATE, HARD = 6, 1

Truth = tuple[kitti.Objects, kitti.Calibration, tuple[int, int] | None]


@dataclass(frozen=True)
class Sensors:
    """What recorded the scans.

    Attributes:
        scan: How a scan's file is laid out.
        camera: Whether a camera looks ahead: scans are cropped to its view and scored by KITTI's rules.
        image_size: Width and height of the images that are absent, in pixels; KITTI's by default.
    """

    scan: ScanLayout = field(default_factory=ScanLayout)
    camera: bool = True
    image_size: tuple[int, int] | None = None

    def calibration(self, path: Path) -> kitti.Calibration:
        """Reads a calibration; without a camera an absent one is :data:`kitti.AXES`."""
        if not self.camera and not os.path.lexists(path):
            return kitti.AXES
        return kitti.read_calibration(path, self.camera)

    def view(self, folder: Path, name: str, calibration: kitti.Calibration) -> tuple[int, int] | None:
        """Returns width and height of a frame's image, ``folder`` being ``training``; None without a camera."""
        return kitti.image_size(folder / "image_2", name, calibration, self.image_size) if self.camera else None


@dataclass(frozen=True)
class Frame:
    """One labelled scan in the camera's view.

    Attributes:
        name: KITTI's frame name.
        points: ``(P, 4)`` float32 x, y, z, reflectance, LiDAR frame.
        boxes: ``(N, 7)`` float32 x, y, z of the centre, l, w, h, yaw.
        labels: ``(N,)`` class indices; -1 for objects that are not detected but take up space (vans, trucks).
        ground: ``(4,)`` plane of the ground (see :func:`~tasks.pointcloud.transforms.fit_ground`), None where unknown.
    """

    name: str
    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ground: np.ndarray | None = None


@dataclass(frozen=True)
class Contents(Columns):
    """The labelled objects of all frames, without DontCare and without those that have no size.

    Attributes:
        frames: ``(M,)`` names of the frames.
        types: ``(M,)`` class names.
        boxes: ``(M, 7)`` x, y, z of the centre, l, w, h, yaw, LiDAR frame.
        points: ``(M,)`` points in the box, of those that are kept.
        difficulty: ``(M,)`` 0 easy, 1 moderate, 2 hard, -1 none: KITTI's, without a camera by :func:`by_points`.
        height: ``(M,)`` pixels of the labelled 2-D box.
        projected: ``(M,)`` pixels of the height of the 3-D box in the image; infinite without a camera.
    """

    frames: np.ndarray
    types: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    difficulty: np.ndarray
    height: np.ndarray
    projected: np.ndarray

    def __len__(self) -> int:
        return len(self.types)

    def select(self, which: np.ndarray) -> Contents:
        """Returns the objects that a mask or an index array names."""
        return Contents(**{column.name: getattr(self, column.name)[which] for column in fields(self)})

    @staticmethod
    def joined(parts: Iterable[Contents]) -> Contents:
        """Joins the objects of several frames."""
        listed = list(parts)
        return Contents(**{c.name: np.concatenate([getattr(p, c.name) for p in listed]) for c in fields(Contents)})


def by_points(points: np.ndarray) -> np.ndarray:
    """Returns the difficulty of objects without a camera, by their ``(N,)`` points: 1, 2, or -1 where there is none."""
    return np.where(points >= MODERATE, 1, np.where(points >= HARD, 2, -1))


def within(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns the ``(N,)`` mask of the points or boxes whose x, y, z lie in a range, its end left out."""
    inside = (values[:, :3] >= low) & (values[:, :3] < high)
    return np.logical_and.reduce(inside, axis=1)


class Frames:
    """The frames of a KITTI-layout folder, prepared.

    Args:
        root: KITTI-layout folder.
        prepared: Folder of the cropped scans (see :func:`prepare`).
        classes: Classes that are detected, in the order of the logits.
        sensors: What recorded them.
    """

    def __init__(self, root: Path, prepared: Path, classes: Sequence[str], sensors: Sensors | None = None) -> None:
        self.root = root
        self.prepared = prepared
        self.classes = tuple(classes)
        self.sensors = sensors or Sensors()
        self._truth: dict[str, Truth] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A loader's process reads what it needs.
        state = {name: getattr(self, name) for name in ("root", "prepared", "classes", "sensors")}
        return {**state, "_truth": {}}

    def truth(self, name: str, odd: kitti.Oddities | None = None) -> Truth:
        """Returns labels, calibration and image size of a frame; reads them once."""
        if name not in self._truth:
            training = self.root / "training"
            objects = kitti.read_objects(training / "label_2" / f"{name}.txt", odd=odd)
            calibration = self.sensors.calibration(training / "calib" / f"{name}.txt")
            self._truth[name] = objects, calibration, self.sensors.view(training, name, calibration)
        return self._truth[name]

    def objects(self, name: str) -> tuple[kitti.Objects, np.ndarray]:
        """Returns the labels of a frame that are boxes in space, and these boxes ``(N, 7)``."""
        objects, calibration, _ = self.truth(name)
        objects = objects.select((objects.types != "DontCare") & (objects.dimensions > 0).all(axis=1))
        return objects, kitti.objects_to_boxes(objects, calibration)

    @cached_property
    def contents(self) -> Contents:
        """What the labels of all prepared frames hold."""
        return Contents.load(self.prepared / CONTENTS)

    @cached_property
    def _rows(self) -> dict[str, np.ndarray]:
        names, index = np.unique(self.contents.frames, return_inverse=True)
        return {name: np.flatnonzero(index == i) for i, name in enumerate(names.tolist())}

    def scored(self, name: str, low: np.ndarray, high: np.ndarray) -> kitti.Objects:
        """Returns the ground truth of a frame's evaluation.

        With a camera these are its labels. Without one the evaluation shall rest on points: an object is as difficult
        as :func:`by_points` says, and one outside the range ``low`` to ``high`` is ignored.
        """
        if self.sensors.camera:
            return self.truth(name)[0]
        objects, boxes = self.objects(name)
        rows = self._rows.get(name, np.empty(0, dtype=np.int64))
        difficulty = np.where(within(boxes, low, high), self.contents.difficulty[rows], -1)
        return replace(
            objects,
            truncated=np.zeros(len(objects)),
            occluded=np.where(difficulty < 0, max(kitti.MAX_OCCLUSION) + 1, difficulty),
            bbox=np.tile(kitti.WHOLE, (len(objects), 1)),
        )

    @cached_property
    def _ground(self) -> dict[str, list[float] | None]:
        planes: dict[str, list[float] | None] = json.loads((self.prepared / GROUND).read_text())
        return planes

    def read(self, name: str) -> Frame:
        """Reads a prepared frame."""
        objects, boxes = self.objects(name)
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.array([index.get(t, -1) for t in objects.types], dtype=np.int64)
        points = np.load(self.prepared / f"{name}.npy", allow_pickle=False)
        plane = self._ground[name]
        return Frame(name, points, boxes.astype(np.float32), labels, None if plane is None else np.array(plane))


def prepare(
    root: Path,
    names: Sequence[str],
    train: Sequence[str],
    classes: Sequence[str],
    work: Path,
    sensors: Sensors | None = None,
) -> dict[str, Any]:
    """Crops scans to the camera's view, fits their ground and builds the ground-truth database, into ``work``.

    Args:
        root: KITTI-layout folder.
        names: All frames that are used.
        train: Those whose objects go into the database.
        classes: Classes of the database.
        work: Where the products go.
        sensors: What recorded the frames.

    Returns:
        The product's manifest; ``odd`` are lines about labels that can hardly be meant, ``seen`` the share of the
        points in the camera's view, ``unseen`` the frames without any.

    Raises:
        KDBenchError: A file is not as it should be, or no scan has a point in the camera's view.
    """
    frames = Frames(root, work, classes, sensors)
    odd = kitti.Oddities()

    def crop(name: str) -> tuple[int, int, list[float] | None, Contents, str]:
        path = root / "training" / "velodyne" / f"{name}.bin"
        points = read_points(path, frames.sensors.scan)
        total, whole = len(points), f"{path} has {len(points)} points, {ranges(points)}"
        _, calibration, size = frames.truth(name)
        if size is not None:
            points = points[kitti.in_camera_view(points, calibration, size)]
        np.save(work / f"{name}.npy", points)
        plane = fit_ground(points)
        return len(points), total, None if plane is None else plane.tolist(), _contents(frames, name, points), whole

    for name in names:  # in order, so that the first odd row is always the same
        frames.truth(name, odd)
    with ThreadPoolExecutor(max_workers=4) as pool:
        counts, totals, planes, contents, wholes = zip(*pool.map(crop, names), strict=True)
    unseen = [name for name, count in zip(names, counts, strict=True) if count == 0]
    if len(unseen) == len(names):
        raise KDBenchError(
            f"no point of {len(names)} scans lies in the camera's view of {frames.truth(names[0])[2]} pixels: "
            f"{wholes[0]}; are P2 and Tr_velo_to_cam of training/calib those of this camera? data.camera=false reads "
            "data without a camera"
        )
    write_atomic(work / GROUND, json.dumps(dict(zip(names, planes, strict=True))))
    Contents.joined(contents).save(work / CONTENTS)
    held = dict(zip(names, contents, strict=True))

    def cut_out() -> Any:
        for name in train:
            kept = held[name].select(np.isin(held[name].types, classes))
            yield name, frames.read(name).points, kept.boxes, kept.types, kept.difficulty

    Database.build(cut_out()).save(work / DATABASE)
    seen = sum(counts) / sum(totals)
    return {"frames": len(names), "points": sum(counts), "seen": seen, "odd": odd.lines(), "unseen": unseen}


def _contents(frames: Frames, name: str, points: np.ndarray) -> Contents:
    objects, boxes = frames.objects(name)
    _, calibration, size = frames.truth(name)
    inside = np.bincount(points_in_boxes(points, boxes)[1], minlength=len(boxes))
    projected = np.full(len(boxes), np.inf)
    if size is not None:
        rectangles, _ = kitti.clip_to_image(kitti.project_boxes(boxes, calibration), size)
        projected = np.nan_to_num(rectangles[:, 3] - rectangles[:, 1])
    return Contents(
        frames=np.full(len(boxes), name, dtype=f"<U{len(name)}"),
        types=objects.types,
        boxes=boxes,
        points=inside,
        difficulty=by_points(inside) if size is None else kitti.difficulty(objects),
        height=objects.bbox[:, 3] - objects.bbox[:, 1],
        projected=projected,
    )


def content_digests(root: Path, names: Sequence[str], store: Store, *parts: Collection[str]) -> list[str]:
    """Digests a real data set and parts of it: labels, calibrations and scans by content, images by width and height.

    Scans are read once, for as long as they stay as they are (:meth:`~kdbench.base.store.Store.of_files`).

    Args:
        root: KITTI-layout folder.
        names: All frames that are used.
        store: Keeps what was found.
        parts: Names of some of them.

    Returns:
        The digest of all, then that of each of ``parts``.

    Raises:
        KDBenchError: A file cannot be read.
    """
    training = root / "training"
    labels, calibrations = ([training / part / f"{n}.txt" for n in names] for part in ("label_2", "calib"))
    texts = hash_files([*labels, *(path for path in calibrations if os.path.lexists(path))], root)
    images = {name: kitti.measured(training / "image_2", name) or kitti.DEFAULT_IMAGE_SIZE for name in names}
    scans = [training / "velodyne" / f"{name}.bin" for name in names]
    found = store.of_files(
        "kitti-scan-digests", scans, lambda: {"scans": hash_files(scans, root)}, wait_message="the digest of the scans"
    )

    def of(part: Collection[str]) -> str:
        of_texts, of_scans = (
            digest({file: content for file, content in files.items() if Path(file).stem in part})
            for files in (texts, found["scans"])
        )
        return digest([of_texts, {name: size for name, size in images.items() if name in part}, of_scans])

    return [of(frozenset(part)) for part in (names, *parts)]
