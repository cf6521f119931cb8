"""Splits, loaders and batches of KITTI-layout data: prepared frames are read, augmented and batched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import Dataset

from kdbench.base import rng
from kdbench.base.instantiate import check
from kdbench.data import Key, SeededLoader
from kdbench.errors import KDBenchError, nearest
from kdbench.splits import SHARE, cut
from kdbench.task import Batch
from tasks.pointcloud import kitti
from tasks.pointcloud.anchors import KITTI_ANCHORS
from tasks.pointcloud.database import Database
from tasks.pointcloud.frames import DATABASE, Frame, Frames, within
from tasks.pointcloud.transforms import Transforms

FAR = 40.0  # m; the few points beyond it are all read


@dataclass(frozen=True)
class Split:
    """Frame names by split: KITTI's labelled val is our test, and val is a fixed cut of its train."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    meta: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path, train: int | None = None, test: int | None = None, camera: bool = True) -> Split:
        """Reads ``ImageSets`` and cuts val; ``train`` and ``test`` bound the number of frames.

        Without a camera a frame needs no calibration.

        Raises:
            KDBenchError: Fewer than two frames to train on, of which val cannot be cut, or a frame of both sets; and
                those of :func:`~tasks.pointcloud.kitti.read_split`.
        """
        labelled, tested = (kitti.read_split(root, name, camera) for name in ("train", "val"))
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


def transforms_of(options: Mapping[str, Any], point_range: Sequence[float]) -> Transforms:
    """Returns the augmentation of training scans.

    Args:
        options: Of :class:`~tasks.pointcloud.transforms.Transforms`.
        point_range: Detection range, where the options name none.

    Raises:
        KDBenchError: An option is wrong.
    """
    transforms = Transforms(**check("data.transforms", Transforms, {"point_range": point_range, **options}))
    for name in transforms.sample:
        if name not in KITTI_ANCHORS:
            found = f"data.transforms.sample.{name}: there is no such class"
            raise KDBenchError(f"{found}: {nearest(name, KITTI_ANCHORS)}")
    return transforms


class Scans(Dataset[Any]):
    """Frames by their keys; augmentation is drawn from the named stream of (seed, epoch, frame).

    Args:
        frames: Where frames are read.
        names: Frames of this split.
        transforms: Augmentation, or None.
        database: Objects for ground-truth sampling, or None.
    """

    def __init__(
        self,
        frames: Frames,
        names: Sequence[str],
        transforms: Transforms | None = None,
        database: Database | None = None,
    ) -> None:
        self.frames = frames
        self.names = tuple(names)
        self.transforms = transforms
        self.database = database

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: Key) -> Frame:
        frame = self.frames.read(self.names[key.sample])
        if self.transforms is None:
            return frame
        stream = rng.numpy(key.seed, "augment", key.epoch, frame.name)
        scene = frame.points, frame.boxes, frame.labels
        return Frame(frame.name, *self.transforms(*scene, stream, self.database, frame.ground))


def fewer(points: np.ndarray, number: int, name: str) -> np.ndarray:
    """Leaves so many points of a scan, in their order: all beyond 40 m, and near ones by chance.

    What is drawn follows the frame and how many points it has, so that an augmented scan has others and a scan of a
    user always the same. This is the sampling of the published PointRCNN.

    Args:
        points: ``(P, 4)``.
        number: Points that are left, where there are more.
        name: The frame's.
    """
    if len(points) <= number:
        return points
    stream = rng.numpy(0, "points", name, len(points))
    far = np.linalg.norm(points[:, :3], axis=1) >= FAR
    first, rest = np.flatnonzero(far), np.flatnonzero(~far)
    if len(first) > number:
        first, rest = stream.choice(first, number, replace=False), rest[:0]
    drawn = stream.choice(rest, number - len(first), replace=False)
    return points[np.sort(np.concatenate([first, drawn]))]


class Collate:
    """Joins frames into a batch; points and boxes outside the detection range are dropped.

    Args:
        point_range: x, y, z minimum, then x, y, z maximum, metres.
        ids: Sample id by frame name; 0 where it says none.
        points: Points of a scan that are left; see :func:`fewer`. None for all.
    """

    def __init__(
        self, point_range: Sequence[float], ids: Mapping[str, int] | None = None, points: int | None = None
    ) -> None:
        self.ids = dict(ids or {})
        self.points = points
        self.low = np.asarray(point_range[:3], dtype=np.float32)
        self.high = np.asarray(point_range[3:], dtype=np.float32)

    def __call__(self, frames: Sequence[Frame]) -> Batch:
        points = [f.points[self._inside(f.points)] for f in frames]
        if self.points is not None:
            points = [fewer(values, self.points, f.name) for values, f in zip(points, frames, strict=True)]
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
        return within(values, self.low, self.high)


def with_objects(batch: Batch, objects: Mapping[str, torch.Tensor]) -> Batch:
    """Returns a batch with other true objects; what was worked out of its own is forgotten."""
    names = {key: value for key, value in batch.memo.items() if key == "names"}
    return replace(batch, targets=dict(objects), memo=names)


def _index(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.arange(len(parts)).repeat_interleave(torch.tensor([len(p) for p in parts]))


class KittiData(LightningDataModule):
    """Loaders of a prepared KITTI-layout data set.

    Args:
        frames: Where frames are read.
        split: Frames of each split.
        point_range: Detection range.
        transforms: Training augmentation.
        batch_size: Frames a batch.
        workers: Loader processes; 0 reads in this one.
        seed: Of order and augmentation.
        points: Points of a scan that are left; None for all.
    """

    def __init__(
        self,
        frames: Frames,
        split: Split,
        point_range: Sequence[float],
        transforms: Transforms,
        batch_size: int,
        workers: int,
        seed: int,
        points: int | None = None,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.split = split
        # Through train, validation and test, so that training ids are 0 to N - 1.
        names = (*split.train, *split.val, *split.test)
        self.collate = Collate(point_range, {name: i for i, name in enumerate(names)}, points)
        self.transforms = transforms
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed

    @cached_property
    def _database(self) -> Database:
        return Database.load(self.frames.prepared / DATABASE).filter(self.frames.classes)

    def _train(self, names: Sequence[str], seed: int) -> SeededLoader:
        # Objects of other frames must not get into this cut by being pasted.
        database = self._database.select(np.isin(self._database.frames, names))
        return self._loader(Scans(self.frames, names, self.transforms, database), seed, train=True)

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
