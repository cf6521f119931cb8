"""A tiny data set in KITTI's layout, made by hand: flat ground, and boxes full of points."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.task import Batch, scalars
from tasks.pointcloud import kitti, scans
from tasks.pointcloud.data import Split
from tasks.pointcloud.decode import Detections
from tasks.pointcloud.frames import Frames, prepare
from tasks.pointcloud.task import PointCloud

RANGE = [0.0, -10.24, -3.0, 20.48, 10.24, 1.0]
PILLAR = [0.32, 0.32]
GRID = 64
NET = {"_target_": "tasks.pointcloud.detector.PointPillars", "width": 0.125}
SIZES = {"Car": (3.9, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.7), "Cyclist": (1.8, 0.6, 1.7), "Van": (5.0, 1.9, 2.2)}
GROUND = -1.7
CLASSES = ("Pedestrian", "Cyclist", "Car")

CALIBRATION = kitti.Calibration(
    p2=np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
    r0=np.eye(3),
    velo_to_cam=np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]]),
)


def scene(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (P, 4), boxes (4, 7) and types: one object of each class, apart from each other."""
    g = rng.numpy(0, "tiny", name)
    types = np.array(list(SIZES))
    places = np.array([[9.0, -3], [8, 2.5], [11, 0.5], [16, 4]]) + g.uniform(-0.5, 0.5, (4, 2))
    size = np.array([SIZES[t] for t in types])
    boxes = np.column_stack([places, GROUND + size[:, 2] / 2, size, g.uniform(-0.3, 0.3, 4)])
    ground = np.column_stack([g.uniform(1, 30, 3000), g.uniform(-15, 15, 3000), np.full(3000, GROUND)])
    inside = []
    for x, y, z, length, width, height, yaw in boxes:
        local = g.uniform(-0.5, 0.5, (80, 3)) * [length, width, height]
        turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        inside.append(local @ turn + [x, y, z])
    points = np.concatenate([ground, *inside])
    return np.column_stack([points, g.uniform(0, 1, len(points))]).astype(np.float32), boxes, types


def labels(boxes: np.ndarray, types: np.ndarray) -> kitti.Objects:
    """Labels of boxes, wholly visible, and a DontCare at the end."""
    objects, kept = kitti.boxes_to_objects(boxes, types, None, CALIBRATION, kitti.DEFAULT_IMAGE_SIZE)
    assert len(kept) == len(boxes)

    def joined(values: np.ndarray, last: Any) -> np.ndarray:
        return np.concatenate([values, np.asarray([last], dtype=values.dtype)])

    return kitti.Objects(
        types=np.append(objects.types, "DontCare"),
        truncated=np.append(np.zeros(len(boxes)), -1),
        occluded=np.append(np.zeros(len(boxes), dtype=np.int64), -1),
        alpha=joined(objects.alpha, -10),
        bbox=joined(objects.bbox, [1.0, 2.0, 30.0, 40.0]),
        dimensions=joined(objects.dimensions, [-1.0] * 3),
        location=joined(objects.location, [-1000.0] * 3),
        rotation_y=joined(objects.rotation_y, -10),
    )


def write(root: Path, train: int = 6, test: int = 3) -> Path:
    """Writes the data set; frames are named 000000 and so on, the training ones first."""
    for folder in ("velodyne", "label_2", "calib"):
        (root / "training" / folder).mkdir(parents=True)
    (root / "ImageSets").mkdir()
    names = [f"{i:06d}" for i in range(train + test)]
    for name in names:
        points, boxes, types = scene(name)
        scans.write_points(root / "training" / "velodyne" / f"{name}.bin", points)
        kitti.write_objects(root / "training" / "label_2" / f"{name}.txt", labels(boxes, types))
        kitti.write_calibration(root / "training" / "calib" / f"{name}.txt", CALIBRATION)
    for split, part in (("train", names[:train]), ("val", names[train:])):
        (root / "ImageSets" / f"{split}.txt").write_text("\n".join(part) + "\n")
    return root


@functools.cache
def _spec() -> dict[str, Any]:
    found: dict[str, Any] = config.load(["task=pointcloud", "preset=quick"])
    return found


def task(root: Path | None, cache: Path, data: Mapping[str, Any] | None = None, **options: Any) -> PointCloud:
    """The task of ``conf/`` on a small grid."""
    spec = _spec()
    own = {k: v for k, v in spec["task"].items() if k not in ("name", "_target_")} | {
        "point_range": RANGE,
        "pillar": PILLAR,
    }
    given = {**spec["data"], "root": None if root is None else str(root), "batch_size": 2, **(data or {})}
    return PointCloud(data=given, store=Store(cache), **{**own, **options})


def prepared(root: Path, work: Path) -> Frames:
    work.mkdir(exist_ok=True)
    split = Split.of(root)
    manifest = prepare(root, [*split.train, *split.val, *split.test], split.train, CLASSES, work)
    assert manifest["frames"] == 9
    return Frames(root, work, CLASSES)


def first(task: PointCloud, split: str = "test") -> Batch:
    batch = next(iter(getattr(task.data(0), f"{split}_dataloader")()))
    assert isinstance(batch, Batch)
    return batch


def perfect(task: PointCloud, batch: Batch, drop: int = 0) -> list[Detections]:
    """The ground truth of each sample as detections; ``drop`` leaves out the last so many."""
    found = []
    for sample in range(len(batch)):
        own = batch.targets["batch"] == sample
        boxes, labels = batch.targets["boxes"][own], batch.targets["labels"][own]
        kept = len(boxes) - drop
        found.append(Detections(boxes[:kept], torch.linspace(0.9, 0.5, kept), labels[:kept]))
    return found


NOTHING: Any = None  # the detections are given


def scored(task: PointCloud, model: Any, monkeypatch: pytest.MonkeyPatch, drop: int = 0) -> dict[str, float]:
    metrics = task.metrics("test")
    for batch in task.data(0).test_dataloader():
        with monkeypatch.context() as patch:
            patch.setattr(task, "decode", lambda *_, batch=batch: perfect(task, batch, drop))
            task.score(metrics, model, NOTHING, batch)
    return scalars(metrics)


def losses(task: PointCloud, net: nn.Module, batch: Batch, steps: int = 15) -> list[float]:
    """Trains a detector on one batch and returns its loss before each step."""
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    found = []
    for _ in range(steps):
        loss = torch.stack([*task.loss(net, task.forward(net, batch.inputs), batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found
