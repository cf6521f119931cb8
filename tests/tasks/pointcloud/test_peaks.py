"""The reference is CenterPoint's drawing in words (``centernet_utils.py``), one cell at a time, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.features import Logits
from tasks.pointcloud.data import with_objects
from tasks.pointcloud.decode import Detections, joined
from tasks.pointcloud.peaks import gaussian_peaks, radius
from tasks.pointcloud.pointwise import PointwiseHead
from tests.tasks.pointcloud import tiny

LOW, CELL, GRID = (-6.4, 0.0), (0.32, 0.64), (40, 30)


def reach(height: float, width: float, overlap: float = 0.1) -> int:
    found = []
    for a, b, c, sign in (
        (1.0, height + width, width * height * (1 - overlap) / (1 + overlap), 1),
        (4.0, 2 * (height + width), (1 - overlap) * width * height, 1),
        (4 * overlap, -2 * overlap * (height + width), (overlap - 1) * width * height, 1),
    ):
        found.append((b + sign * math.sqrt(b * b - 4 * a * c)) / 2)
    return max(2, int(min(found)))


def drawn(boxes: np.ndarray, sample: np.ndarray, size: int) -> np.ndarray:
    found = np.zeros((size, *GRID))
    for box, own in zip(boxes, sample, strict=True):
        r = reach(box[3] / CELL[1], box[4] / CELL[0])
        sigma = (2 * r + 1) / 6
        middle = [math.floor((box[1 - axis] - LOW[axis]) / CELL[axis]) for axis in (0, 1)]
        for i, j in np.ndindex(*GRID):
            y, x = i - middle[0], j - middle[1]
            if abs(y) <= r and abs(x) <= r:
                found[own, i, j] = max(found[own, i, j], math.exp(-(x * x + y * y) / (2 * sigma**2)))
    return found


def objects(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = rng.numpy(0, "peaks", count)
    places = g.uniform([1, -6, -1], [18, 6, 0], (count, 3))
    boxes = np.column_stack([places, g.uniform([0.5, 0.5, 1], [9, 4, 2], (count, 3)), g.uniform(-3, 3, count)])
    return torch.from_numpy(boxes).float(), torch.from_numpy(g.integers(0, 2, count))


def test_gaussians():
    boxes, sample = objects(7)
    found = gaussian_peaks(boxes, sample, 3, LOW, CELL, GRID)
    expected = drawn(boxes.double().numpy(), sample.numpy(), 3)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert found[:2].amax((1, 2)).tolist() == [1, 1]
    assert not found[2].any()
    assert not gaussian_peaks(boxes[:0], sample[:0], 3, LOW, CELL, GRID).any()


@pytest.mark.parametrize("size", [(1.0, 1.0), (12.0, 5.0), (80.0, 30.0)])
def test_radius(size):
    assert radius(torch.tensor(size[:1]), torch.tensor(size[1:])).tolist() == [reach(*size)]


def test_each_anchor_has_the_peak_of_its_cell(made):
    batch = tiny.first(made)
    sides = made.anchors.grid
    found = made.ops()["peaks"](batch, len(made.anchors)).view(len(batch), *sides, -1)
    assert (found == found[..., :1]).all()
    for box, own in zip(batch.targets["boxes"], batch.targets["batch"], strict=True):
        x, y = ((box[:2] - torch.tensor(tiny.RANGE[:2])) / (2 * tiny.PILLAR[0])).floor().long().tolist()
        assert found[own, y, x, 0] == 1


def test_points_in_objects_are_peaks(made):
    head, batch = PointwiseHead(made.classes, 0.1), tiny.first(made)
    scores = head.mark(Logits(torch.zeros(len(batch), 600, 3), law="bernoulli"), batch)
    peaks = head.peaks(batch, 600)
    assert scores.weight is not None
    assert 0 < int(peaks.sum()) < peaks.numel()
    assert peaks.unique().tolist() == [0, 1]


def test_detections_become_labels_that_are_assigned_anew(made):
    """The loss on other objects is that of a batch that had them from the start, and nothing of the first is left."""
    batch = tiny.first(made)
    with rng.scope(0, "peaks"):
        outputs = made.forward(made.build(tiny.NET), batch.inputs)
    before = made.loss(None, outputs, batch)
    found = joined(tiny.perfect(made, batch, drop=1))
    assert set(made.ops()["true_objects"](batch)) | {"scores"} == set(found)
    other = with_objects(batch, {name: found[name] for name in batch.targets})
    assert other.memo == {"names": batch.memo["names"]}
    assert len(other.targets["boxes"]) < len(batch.targets["boxes"])
    after = made.loss(None, outputs, other)
    assert after["cls"] != before["cls"]
    again = made.loss(None, outputs, with_objects(other, batch.targets))
    assert {name: again[name].item() for name in again} == {name: before[name].item() for name in before}


def test_no_detection_is_joined_too():
    none = Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert {name: tuple(rows.shape) for name, rows in joined([none, none]).items()} == {
        "boxes": (0, 7),
        "scores": (0,),
        "labels": (0,),
        "batch": (0,),
    }
