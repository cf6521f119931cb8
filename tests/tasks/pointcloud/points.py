"""A small PointRCNN, scans and boxes for it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.base import rng
from kdbench.task import Batch
from tasks.pointcloud.pointrcnn import PointOutputs, PointRCNN
from tests.tasks.pointcloud import tiny

POINTS = 512


def make_model(**options) -> PointRCNN:
    with rng.scope(0, "pointrcnn"):
        return PointRCNN(0.125, **{"points": POINTS, **options}).eval()


def random(*shape: int, name: str) -> Tensor:
    return torch.rand(*shape, generator=rng.generator(0, name))


def make_boxes(count: int, name: str = "boxes") -> Tensor:
    low, span = torch.tensor([2.0, -8, -2, 1, 1, 1, -9]), torch.tensor([15.0, 16, 1, 3, 1, 1, 18])
    return low + span * random(count, 7, name=name)


def scene(size: int = 2) -> Batch:
    """Scans of the tiny set with their objects."""
    points, boxes, labels = [], [], []
    for name in ("a", "b", "c")[:size]:
        cloud, found, types = tiny.scene(name)
        points.append(torch.from_numpy(cloud))
        boxes.append(torch.from_numpy(found[:3]).float())
        labels.append(torch.tensor([tiny.CLASSES.index(t) for t in types[:3]]))

    def owner(parts):
        return torch.arange(size).repeat_interleave(torch.tensor([len(p) for p in parts]))

    inputs = {"points": torch.cat(points), "batch": owner(points), "size": size}
    targets = {"boxes": torch.cat(boxes), "labels": torch.cat(labels), "batch": owner(boxes)}
    return Batch(inputs, targets, torch.arange(size))


def some_outputs(size: int = 2, count: int = POINTS) -> PointOutputs:
    cls, box = 4 * random(size, count, 3, name="cls") - 2, random(size, count, 8, name="box") - 0.5
    xyz = random(size, count, 3, name="xyz") * torch.tensor([18.0, 18, 2]) - torch.tensor([0.0, 9, 2])
    return PointOutputs(cls, box, xyz, random(size, count, 16, name="features"))
