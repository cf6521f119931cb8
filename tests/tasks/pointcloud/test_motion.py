"""A moved scene against the augmentation of the loader, which NumPy does, and cells against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud import transforms
from tasks.pointcloud.motion import POSE, Pose, carry_map, rigid_warp
from tests.tasks.pointcloud import tiny

WARP = rigid_warp(tiny.RANGE, lambda scores, pose: carry_map(scores, pose, (8, 8)))
BY = torch.tensor([[0.3, 0.1, 0.0, 0.0], [-0.2, -0.05, 0.1, -0.2]])


def scenes(dtype: torch.dtype = torch.float32) -> Batch:
    points, boxes, labels = [], [], []
    for name in ("a", "b"):
        cloud, found, types = tiny.scene(name)
        points.append(torch.from_numpy(cloud).to(dtype))
        boxes.append(torch.from_numpy(found).to(dtype))
        labels.append(torch.arange(len(types)))

    def scene(parts):
        return torch.arange(2).repeat_interleave(torch.tensor([len(p) for p in parts]))

    inputs = {"points": torch.cat(points), "batch": scene(points), "size": 2}
    targets = {"boxes": torch.cat(boxes), "labels": torch.cat(labels), "batch": scene(boxes)}
    return Batch(inputs, targets, torch.arange(2))


def test_points_and_boxes_move_as_the_loader_moves_them():
    batch = scenes(torch.float64)
    moved, _ = WARP(batch, BY.double())
    half = np.array([10.24, 10.24])
    for i, by in enumerate(BY.double().numpy()):
        points, boxes = (
            values[owner == i].numpy()
            for values, owner in (
                (batch.inputs["points"], batch.inputs["batch"]),
                (batch.targets["boxes"], batch.targets["batch"]),
            )
        )
        points, boxes = transforms.scale(*transforms.rotate(points, boxes, by[0]), np.exp(by[1]))
        points[:, :2] += by[2:] * half
        boxes[:, :2] += by[2:] * half
        np.testing.assert_allclose(moved.inputs["points"][moved.inputs["batch"] == i].numpy(), points, atol=1e-6)
        inside = (np.abs(boxes[:, 1]) < 10.24) & (boxes[:, 0] >= 0) & (boxes[:, 0] < 20.48)
        found = moved.targets["boxes"][moved.targets["batch"] == i].numpy()
        np.testing.assert_allclose(found[:, :6], boxes[inside, :6], atol=1e-6)
        np.testing.assert_allclose(np.cos(found[:, 6] - boxes[inside, 6]), 1, atol=1e-9)
        kept = batch.targets["labels"][batch.targets["batch"] == i].numpy()[inside]
        assert moved.targets["labels"][moved.targets["batch"] == i].tolist() == kept.tolist()


def test_boxes_that_leave_the_range_are_dropped():
    far = torch.zeros(2, 4)
    far[0, 2] = 3
    moved, _ = WARP(scenes(), far)
    assert moved.targets["batch"].tolist() == [1, 1, 1, 1]
    assert len(moved.targets["labels"]) == len(moved.targets["boxes"]) == 4


def test_zeros_move_nothing():
    batch = scenes()
    moved, carry = WARP(batch, torch.zeros(2, len(POSE)))
    assert torch.equal(moved.inputs["points"], batch.inputs["points"])
    torch.testing.assert_close(moved.targets["boxes"], batch.targets["boxes"])
    scores = Logits(torch.randn(2, 8 * 8 * 6, 3, generator=rng.generator(0, "motion")), law="bernoulli")
    torch.testing.assert_close(carry(scores).values, scores.values, atol=1e-5, rtol=0)


def test_cells_come_from_where_their_points_were():
    pose = Pose(BY.double(), tiny.RANGE)
    metres = torch.tensor([[3.0, -4.0, 0.5], [15.0, 7.0, -1.0]], dtype=torch.float64)
    centre, half = torch.tensor([10.24, 0.0]), torch.tensor([10.24, 10.24])
    for scene in (0, 1):
        moved = pose.move(metres, torch.full((2,), scene))
        back = pose.source(((moved[:, :2] - centre) / half).double())[scene]
        torch.testing.assert_close(back * half + centre, metres[:, :2])


def test_scores_are_carried_to_the_cell_of_the_moved_scene():
    by = torch.zeros(1, 4)
    by[0, 2] = 2 / 8  # by one cell along x
    batch = scenes()
    one = Batch({**batch.inputs, "size": 1}, batch.targets, torch.arange(1))
    one = one.with_inputs(one.inputs, targets={k: v[:0] for k, v in batch.targets.items()})
    one.inputs["batch"] = torch.zeros_like(one.inputs["batch"])
    _, carry = WARP(one, by)
    values = torch.randn(1, 8, 8, 6, 3, generator=rng.generator(0, "carry"))
    found = carry(Logits(values.view(1, -1, 3), law="bernoulli")).values.view(1, 8, 8, 6, 3)
    torch.testing.assert_close(found[:, :, 1:], values[:, :, :-1])  # cells run over y, then x


def test_gradients_reach_the_numbers():
    batch, numbers = scenes(torch.float64), BY.double().requires_grad_()
    moved, carry = WARP(batch, numbers)
    scores = torch.randn(2, 8 * 8 * 6, 3, generator=rng.generator(0, "motion"), dtype=torch.float64)
    for value in (moved.inputs["points"], carry(Logits(scores)).values):
        (grad,) = torch.autograd.grad(value.square().sum(), [numbers], retain_graph=True)
        assert (grad != 0).all()
    assert not moved.targets["boxes"].requires_grad


@pytest.mark.parametrize("count", [0, 1])
def test_a_scene_without_points_or_boxes(count):
    points = torch.full((count, 4), 5.0)
    inputs = {"points": points, "batch": torch.zeros(count, dtype=torch.long), "size": 1}
    targets = {"boxes": torch.zeros(0, 7), "labels": torch.zeros(0).long(), "batch": torch.zeros(0).long()}
    moved, _ = WARP(Batch(inputs, targets, torch.zeros(1)), BY[:1])
    assert moved.inputs["points"].shape == (count, 4)
    assert moved.targets["boxes"].shape == (0, 7)
