"""The loader on real frames, read from outside the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdbench.base.instantiate import instantiate
from kdbench.base.store import Store
from kdbench.configuration import config
from tasks.pointcloud import kitti
from tasks.pointcloud.data import KittiData
from tasks.pointcloud.database import points_in_boxes
from tasks.pointcloud.decode import Detections
from tasks.pointcloud.task import PointCloud
from tests.tasks.pointcloud import tiny


@pytest.fixture(scope="module")
def root(shared_data) -> Path:
    return shared_data / "kitti"


@pytest.fixture(scope="module")
def real(root, tmp_path_factory) -> PointCloud:
    """The task as published, on the real frames."""
    composed = config.load(["task=pointcloud", "preset=paper", f"data.root={root}", "data.workers=0"])
    spec = {k: v for k, v in composed["task"].items() if k != "name"}
    task = instantiate("task", spec, data=composed["data"], store=Store(tmp_path_factory.mktemp("cache")))
    assert isinstance(task, PointCloud)
    return task


@pytest.fixture(scope="module")
def data(real) -> KittiData:
    made = real.data(0)
    assert isinstance(made, KittiData)
    return made


@pytest.fixture(scope="module")
def names(data) -> list[str]:
    return sorted([*data.split.train, *data.split.val, *data.split.test])


def test_the_published_split_is_kept(real, root, data):
    train, val = (kitti.read_split(root, split) for split in ("train", "val"))
    assert data.split.test == tuple(val)
    assert sorted(data.split.train + data.split.val) == sorted(train)
    assert real.dataset().sizes == {
        "train": len(train) - len(data.split.val),
        "val": len(data.split.val),
        "test": len(val),
    }
    assert real.dataset().name == "kitti"


def test_points_and_pillars_of_a_frame(data, names):
    """Bands measured once over 27 real frames: the crop and the grid are those of the published detector."""
    points, pillars = [], []
    for name in names:
        batch = data.collate([data.frames.read(name)])
        xyz = batch.inputs["points"].double()  # in float32 a few points change cells
        cells = ((xyz[:, :2] - torch.tensor([0, -39.68], dtype=torch.float64)) / 0.16).floor().long()
        points.append(len(xyz))
        pillars.append(len(torch.unique(cells, dim=0)))
    assert len(names) >= 14
    assert min(points) > 15_000
    assert max(points) < 21_000  # a few hundred more where the image, and so its true size, is not there
    assert min(pillars) >= 3034
    assert max(pillars) <= 8573


def test_boxes_hold_points(data, names):
    """Labels and calibration fit the scans: every object near by holds points, and all but a few of the others."""
    held, total = 0, 0
    for name in names:
        frame = data.frames.read(name)
        _, box = points_in_boxes(frame.points, frame.boxes)
        counts = np.bincount(box, minlength=len(frame.boxes))
        near = np.linalg.norm(frame.boxes[:, :2], axis=1) < 20
        assert (counts[near] > 0).all(), name
        held, total = held + int((counts > 0).sum()), total + len(counts)
    assert total > 50
    assert held >= total - 3


def test_augmented_batches(data):
    batch = next(iter(data.train_dataloader()))
    assert len(batch) == min(6, len(data.split.train))
    assert batch.inputs["points"].shape[1] == 4
    assert batch.inputs["points"].dtype == torch.float32
    assert batch.targets["boxes"].shape[1] == 7
    assert set(batch.targets["labels"].tolist()) <= {0, 1, 2}
    assert [data.split.train[i] for i in batch.ids.tolist()] == batch.memo["names"]
    # Pasted objects: more than what the scans hold themselves.
    own = sum(int((data.frames.read(name).labels >= 0).sum()) for name in batch.memo["names"])
    assert len(batch.targets["boxes"]) > own


def test_ground_truth_scores_100(real, data, monkeypatch):
    metrics = real.metrics("test")
    nothing: Any = None
    for batch in data.test_dataloader():
        found = []
        for name in batch.memo["names"]:
            frame = data.frames.read(name)
            own = frame.labels >= 0
            boxes, labels = torch.from_numpy(frame.boxes[own]), torch.from_numpy(frame.labels[own])
            found.append(Detections(boxes, torch.linspace(0.9, 0.5, len(boxes)), labels))
        monkeypatch.setattr(real, "decode", lambda *_, found=found: found)
        real.score(metrics, nothing, nothing, batch)
    values = {name: float(value) for name, value in metrics.compute().items()}
    for difficulty in ("3d_moderate_all", "bev_moderate_all"):
        assert values[f"map_{difficulty}"] == pytest.approx(100), difficulty


def test_read_and_predict_a_real_frame(real, root, data, tmp_path):
    name = data.split.test[0]
    batch = real.read(root / "training" / "velodyne" / f"{name}.bin")
    assert torch.equal(batch.inputs["points"], data.collate([data.frames.read(name)]).inputs["points"])
    small = tiny.task(root, tmp_path)
    model: Any = small.build(tiny.NET).eval()
    torch.nn.init.constant_(model.head.cls.bias, 0.0)  # an untrained head that speaks up
    near = small.read(root / "training" / "velodyne" / f"{name}.bin")
    (found,) = small.predictions(model, near)
    assert 0 < len(found["objects"]) <= 50
    first = found["objects"][0]
    assert first["class"] in small.classes
    assert 0.1 < first["score"] <= 1
    assert len(first["box"]) == 7
    assert small.picture(near, {"student": model}).width > 300
