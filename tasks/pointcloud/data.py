"""KITTI-layout data for the detector: prepared once, then read, augmented and batched.

Preparing crops each scan to the camera's view, fits its ground, and cuts the training objects out for ground-truth
sampling. Embedded data is simulated in KITTI's layout first and takes the same way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from kdbench import rng
from kdbench.cache import Store, write_atomic
from kdbench.data import Key, SeededLoader
from kdbench.digest import digest, digest_files
from kdbench.errors import KDBenchError
from kdbench.splits import SHARE, cut
from kdbench.task import Batch
from tasks.pointcloud import kitti
from tasks.pointcloud.augment import Augment, fit_ground
from tasks.pointcloud.database import Database

DATABASE = "database.npz"
GROUND = "ground.json"

Truth = tuple[kitti.Objects, kitti.Calibration, tuple[int, int]]


@dataclass(frozen=True)
class Frame:
    """One labelled scan in the camera's view.

    Attributes:
        name: KITTI's frame name.
        points: ``(P, 4)`` float32 x, y, z, reflectance, LiDAR frame.
        boxes: ``(N, 7)`` float32 x, y, z of the centre, l, w, h, yaw.
        labels: ``(N,)`` class indices; -1 for objects that are not detected but take up space (vans, trucks).
        ground: ``(4,)`` plane of the ground (see :func:`~tasks.pointcloud.augment.fit_ground`), None where unknown.
    """

    name: str
    points: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ground: np.ndarray | None = None


class Frames:
    """The frames of a KITTI-layout folder, prepared.

    Args:
        root: KITTI-layout folder.
        prepared: Folder of the cropped scans (see :func:`prepare`).
        classes: Classes that are detected, in the order of the logits.
    """

    def __init__(self, root: Path, prepared: Path, classes: Sequence[str]) -> None:
        self.root = root
        self.prepared = prepared
        self.classes = tuple(classes)
        self._truth: dict[str, Truth] = {}

    def __getstate__(self) -> dict[str, Any]:
        # A loader's process reads what it needs.
        return {"root": self.root, "prepared": self.prepared, "classes": self.classes, "_truth": {}}

    def truth(self, name: str) -> Truth:
        """Returns labels, calibration and image size of a frame; reads them once."""
        if name not in self._truth:
            training = self.root / "training"
            objects = kitti.read_objects(training / "label_2" / f"{name}.txt")
            calibration = kitti.read_calibration(training / "calib" / f"{name}.txt")
            self._truth[name] = objects, calibration, image_size(training / "image_2" / f"{name}.png")
        return self._truth[name]

    @cached_property
    def _ground(self) -> dict[str, list[float] | None]:
        planes: dict[str, list[float] | None] = json.loads((self.prepared / GROUND).read_text())
        return planes

    def read(self, name: str) -> Frame:
        """Reads a prepared frame."""
        objects, calibration, _ = self.truth(name)
        objects = objects.select(objects.types != "DontCare")
        boxes = kitti.objects_to_boxes(objects, calibration).astype(np.float32)
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.array([index.get(t, -1) for t in objects.types], dtype=np.int64)
        points = np.load(self.prepared / f"{name}.npy", allow_pickle=False)
        plane = self._ground[name]
        return Frame(name, points, boxes, labels, None if plane is None else np.array(plane))


def prepare(
    root: Path, names: Sequence[str], train: Sequence[str], classes: Sequence[str], work: Path
) -> dict[str, Any]:
    """Crops scans to the camera's view, fits their ground and builds the ground-truth database, into ``work``.

    Args:
        root: KITTI-layout folder.
        names: All frames that are used.
        train: Those whose objects go into the database.
        classes: Classes of the database.
        work: Where the products go.

    Returns:
        The product's manifest.
    """
    frames = Frames(root, work, classes)

    def crop(name: str) -> tuple[int, list[float] | None]:
        points = kitti.read_points(root / "training" / "velodyne" / f"{name}.bin")
        _, calibration, size = frames.truth(name)
        points = points[kitti.in_camera_view(points, calibration, size)]
        np.save(work / f"{name}.npy", points)
        plane = fit_ground(points)
        return len(points), None if plane is None else plane.tolist()

    with ThreadPoolExecutor(max_workers=4) as pool:
        counts, planes = zip(*pool.map(crop, names), strict=True)
    write_atomic(work / GROUND, json.dumps(dict(zip(names, planes, strict=True))))

    def cut_out() -> Any:
        for name in train:
            objects, calibration, _ = frames.truth(name)
            objects = objects.select(np.isin(objects.types, classes))
            boxes = kitti.objects_to_boxes(objects, calibration)
            yield name, frames.read(name).points, boxes, objects.types, kitti.difficulty(objects)

    Database.build(cut_out()).save(work / DATABASE)
    return {"frames": len(names), "points": sum(counts)}


def image_size(path: Path) -> tuple[int, int]:
    """Returns width and height of a frame's image in pixels, KITTI's usual size where the image is absent.

    Raises:
        KDBenchError: The file is no image.
    """
    if not path.is_file():
        return kitti.DEFAULT_IMAGE_SIZE
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise KDBenchError(f"{path}: not a readable image ({error}); expected a PNG") from None


def content_digest(root: Path, names: Sequence[str], store: Store) -> str:
    """Digests a real data set: labels, calibrations and scans by content, images by width and height.

    Scans are read once: their digest stays in ``store`` while their paths, sizes and times of change do.

    Raises:
        KDBenchError: A file cannot be read.
    """
    training = root / "training"
    texts = [training / folder / f"{name}.txt" for folder in ("label_2", "calib") for name in names]
    images = {name: image_size(training / "image_2" / f"{name}.png") for name in names}
    scans = [training / "velodyne" / f"{name}.bin" for name in names]
    states = {str(path.absolute()): _state(path) for path in scans}
    product = store.product(
        "kitti-scans",
        digest(states),
        lambda _: {"digest": digest_files(scans, root)},
        wait_message="the digest of the scans",
    )
    return digest([digest_files(texts, root), images, product.manifest["digest"]])


def _state(scan: Path) -> tuple[int, int]:
    try:
        found = scan.stat()
    except OSError as error:
        raise KDBenchError(f"{scan}: cannot read this scan ({error.strerror}); expected a file") from None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Split:
    """Frame names by split: KITTI's labelled val is our test, and val is a fixed cut of its train."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    meta: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path, train: int | None = None, test: int | None = None) -> Split:
        """Reads ``ImageSets`` and cuts val; ``train`` and ``test`` bound the number of frames.

        Raises:
            KDBenchError: Fewer than two frames to train on, of which val cannot be cut, or a frame of both sets; and
                those of :func:`~tasks.pointcloud.kitti.read_split`.
        """
        labelled, tested = kitti.read_split(root, "train"), kitti.read_split(root, "val")
        both = sorted({*labelled} & {*tested})
        if both:
            sets = root / "ImageSets"
            raise KDBenchError(f"{sets}: frame {both[0]} is in train.txt and in val.txt, which is our test; keep one")
        most = min(len(labelled) if train is None else train, len(labelled))
        if most < 2:
            found = f"{root / 'ImageSets' / 'train.txt'}: {most} frame to train on (data.train={train})"
            raise KDBenchError(f"{found}; expected at least 2, as validation is cut from them")
        # Of all frames: validation never meets the training frames of a run with more or fewer of them.
        held_out = cut(labelled)
        few = len(held_out) if most == len(labelled) else max(1, round(SHARE * most))
        kept = [n for i, n in enumerate(labelled) if i not in set(held_out)][: most - few]
        meta = set(cut(kept, purpose="meta"))
        return cls(
            train=tuple(kept),
            val=tuple(labelled[i] for i in held_out[:few]),
            test=tuple(tested[:test]),
            meta=tuple(kept[i] for i in sorted(meta)),
        )


class Scans(Dataset[Any]):
    """Frames by ``(epoch, index)`` key; augmentation is drawn from the named stream of (seed, epoch, frame).

    Args:
        frames: Where frames are read.
        names: Frames of this split.
        seed: Of the augmentation.
        augment: Augmentation, or None.
        database: Objects for ground-truth sampling, or None.
    """

    def __init__(
        self,
        frames: Frames,
        names: Sequence[str],
        seed: int = 0,
        augment: Augment | None = None,
        database: Database | None = None,
    ) -> None:
        self.frames = frames
        self.names = tuple(names)
        self.seed = seed
        self.augment = augment
        self.database = database

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Key) -> Frame:
        epoch, index = key
        frame = self.frames.read(self.names[index])
        if self.augment is None:
            return frame
        stream = rng.numpy(self.seed, "augment", epoch, frame.name)
        scene = frame.points, frame.boxes, frame.labels
        return Frame(frame.name, *self.augment(*scene, stream, self.database, frame.ground))


class Collate:
    """Joins frames into a batch; points and boxes outside the detection range are dropped.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum, metres.
        ids: Sample id by frame name; 0 where it says none.
    """

    def __init__(self, point_range: Sequence[float], ids: Mapping[str, int] | None = None) -> None:
        self.ids = dict(ids or {})
        self.low = np.asarray(point_range[:3], dtype=np.float32)
        self.high = np.asarray(point_range[3:], dtype=np.float32)

    def __call__(self, frames: Sequence[Frame]) -> Batch:
        points = [f.points[self._inside(f.points)] for f in frames]
        kept = [self._inside(f.boxes) & (f.labels >= 0) for f in frames]
        boxes = [f.boxes[k] for f, k in zip(frames, kept, strict=True)]
        labels = [f.labels[k] for f, k in zip(frames, kept, strict=True)]
        return Batch(
            inputs={
                "points": torch.from_numpy(np.concatenate(points).astype(np.float32)),
                "batch": _index(points),
                "size": len(frames),
            },
            targets={
                "boxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
                "labels": torch.from_numpy(np.concatenate(labels)),
                "batch": _index(boxes),
            },
            ids=torch.tensor([self.ids.get(f.name, 0) for f in frames]),
            memo={"names": [f.name for f in frames]},
        )

    def _inside(self, values: np.ndarray) -> np.ndarray:
        inside = (values[:, :3] >= self.low) & (values[:, :3] < self.high)
        return np.logical_and.reduce(inside, axis=1)


def _index(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p) for p in parts]))


class KittiData(LightningDataModule):
    """Loaders of a prepared KITTI-layout data set.

    Args:
        frames: Where frames are read.
        split: Frames of each split.
        point_range: Detection range.
        augment: Training augmentation.
        batch_size: Frames a batch.
        workers: Loader processes; 0 reads in this one.
        seed: Of order and augmentation.
    """

    def __init__(
        self,
        frames: Frames,
        split: Split,
        point_range: Sequence[float],
        augment: Augment,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.split = split
        # Through train, validation and test, so that training ids are 0 to N - 1.
        names = (*split.train, *split.val, *split.test)
        self.collate = Collate(point_range, {name: i for i, name in enumerate(names)})
        self.augment = augment
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed

    @cached_property
    def _database(self) -> Database:
        return Database.load(self.frames.prepared / DATABASE).filter(self.frames.classes)

    def _train(self, names: Sequence[str], seed: int) -> SeededLoader:
        # Objects of other frames must not get into this cut by being pasted.
        database = self._database.select(np.isin(self._database.frames, names))
        return self._loader(Scans(self.frames, names, seed, self.augment, database), seed, train=True)

    def _loader(self, scans: Scans, seed: int = 0, train: bool = False) -> SeededLoader:
        return SeededLoader(scans, self.batch_size, seed, self.collate, train, self.workers)

    def train_dataloader(self, without_meta: bool = False) -> SeededLoader:
        """Returns augmented training frames in the order of the seed, ``without_meta`` the rest of that cut."""
        meta = set(self.split.meta) if without_meta else set()
        return self._train([name for name in self.split.train if name not in meta], self.seed)

    def meta_dataloader(self) -> SeededLoader:
        """Returns the further cut of the training frames that bilevel methods use."""
        return self._train(self.split.meta, rng.derive(self.seed, "meta"))

    def val_dataloader(self) -> SeededLoader:
        """Returns the validation frames."""
        return self._loader(Scans(self.frames, self.split.val))

    def test_dataloader(self) -> SeededLoader:
        """Returns the test frames."""
        return self._loader(Scans(self.frames, self.split.test))
