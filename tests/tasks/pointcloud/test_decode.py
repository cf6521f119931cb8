from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.base import rng
from tasks.pointcloud import anchors as coding
from tasks.pointcloud.anchors import Anchors, assign_per_class, heading_bin
from tasks.pointcloud.boxes import iou_3d, rotated_iou_bev, to_bev
from tasks.pointcloud.decode import decode
from tasks.pointcloud.detector import PillarOutputs, PointPillars
from tasks.pointcloud.loss import detection_loss

RANGE = (0.0, -10.24, -3.0, 20.48, 10.24, 1.0)


def oracle(anchors: Anchors, boxes: Tensor, labels: Tensor, batch: Tensor, batch_size: int) -> PillarOutputs:
    """Outputs that say the ground truth: at every positive anchor its box, elsewhere a low score."""
    matched = assign_per_class(anchors, boxes, labels, batch, batch_size)
    sample, anchor = (matched >= 0).nonzero(as_tuple=True)
    truth = matched[sample, anchor]
    cls = torch.full((batch_size, len(anchors), 3), -9.0)
    cls[sample, anchor, labels[truth]] = 1.0 + truth
    code = torch.zeros(batch_size, len(anchors), 7)
    code[sample, anchor] = coding.encode(boxes[truth], anchors.boxes[anchor])
    code[sample, anchor, 6] += math.pi  # the yaw is known modulo pi only; the heading decides
    direction = torch.zeros(batch_size, len(anchors), 2)
    direction[sample, anchor, heading_bin(boxes[truth, 6])] = 1.0
    empty = torch.zeros(0)
    return PillarOutputs(cls, code, direction, empty, empty, empty)


def make_truth(anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    labels, batch = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([0, 0, 0, 2, 2])
    x, y = torch.tensor([8.0, 14.0, 4.0, 6.0, 15.0]), torch.tensor([-4.0, 3.0, 6.0, 0.0, -8.0])
    yaw = torch.tensor([0.2, -1.3, 3.0, -2.9, 1.7])
    z = torch.tensor([-0.9, 0.2, 0.1, -1.1, 0.3])
    return torch.cat([torch.stack([x, y, z], 1), anchors.sizes[labels] * 1.05, yaw[:, None]], 1), labels, batch


def test_ground_truth_comes_back_once_and_best_first():
    anchors = Anchors(RANGE, (32, 32))
    boxes, labels, batch = make_truth(anchors)
    outputs = oracle(anchors, boxes, labels, batch, 3)
    found = decode(outputs, anchors)
    assert [len(d.boxes) for d in found] == [3, 0, 2]
    for sample, rows in ((0, [2, 1, 0]), (2, [4, 3])):
        torch.testing.assert_close(found[sample].boxes[:, :6], boxes[rows, :6])
        torch.testing.assert_close(found[sample].boxes[:, 6].cos(), boxes[rows, 6].cos())
        torch.testing.assert_close(found[sample].boxes[:, 6].sin(), boxes[rows, 6].sin())
        torch.testing.assert_close(found[sample].scores, (1.0 + torch.tensor(rows)).sigmoid())
        assert torch.equal(found[sample].labels, labels[rows])


def test_limits_and_class_wise_suppression():
    anchors = Anchors(RANGE, (32, 32))
    g = rng.generator(0, "decode")
    cls = torch.randn(2, len(anchors), 3, generator=g) * 2
    code = torch.randn(2, len(anchors), 7, generator=g) * 0.1
    direction = torch.randn(2, len(anchors), 2, generator=g)
    empty = torch.zeros(0)
    outputs = PillarOutputs(cls, code, direction, empty, empty, empty)
    every = decode(outputs, anchors, top_k=40, max_keep=1000)
    for sample, (boxes, scores, labels) in enumerate(every):
        assert len(boxes) > 10
        assert (scores[1:] <= scores[:-1]).all()
        assert scores.min() > 0.1
        overlap = rotated_iou_bev(to_bev(boxes), to_bev(boxes)) > 0.01
        overlap.fill_diagonal_(False)
        assert not (overlap & (labels[:, None] == labels)).any()
        assert overlap.any()  # between classes
        best = cls[sample].amax(1).topk(40).indices
        allowed = coding.decode(code[sample], anchors.boxes)[best, :6]
        assert all((box[:6] == allowed).all(1).any() for box in boxes)
        capped = decode(outputs, anchors, top_k=40, max_keep=7)[sample]
        assert torch.equal(capped.boxes, boxes[:7])
    assert all((d.scores > 0.9).all() for d in decode(outputs, anchors, score_threshold=0.9))


def test_samples_do_not_suppress_each_other():
    anchors = Anchors(RANGE, (32, 32))
    boxes, labels, _ = make_truth(anchors)
    twice = oracle(anchors, boxes[:1].repeat(2, 1), labels[:1].repeat(2), torch.tensor([0, 1]), 2)
    assert [len(d.boxes) for d in decode(twice, anchors)] == [1, 1]


def surface(boxes: Tensor, count: int, g: torch.Generator) -> Tensor:
    """Points on the sides of boxes, (N * count, 4)."""
    u = torch.rand(len(boxes), count, 3, generator=g) - 0.5
    side = torch.randint(2, (len(boxes), count), generator=g)
    for axis in (0, 1):
        u[..., axis] = torch.where(side == axis, u[..., axis].sign() / 2, u[..., axis])
    local = u * boxes[:, None, 3:6]
    cos, sin = boxes[:, 6, None].cos(), boxes[:, 6, None].sin()
    x = local[..., 0] * cos - local[..., 1] * sin + boxes[:, None, 0]
    y = local[..., 0] * sin + local[..., 1] * cos + boxes[:, None, 1]
    z = local[..., 2] + boxes[:, None, 2]
    return torch.stack([x, y, z, torch.full_like(x, 0.3)], -1).flatten(0, 1)


def test_narrow_net_learns_two_frames():
    with rng.scope(0, "overfit"):
        model = PointPillars(0.25, RANGE, (0.32, 0.32))
    anchors = Anchors(model.point_range, model.head_grid, model.classes)
    g = rng.generator(0, "overfit")
    boxes, labels, batch = make_truth(anchors)
    batch = batch.clamp(max=1)
    ground = torch.rand(1000, 4, generator=g) * torch.tensor([20.48, 20.48, 0.05, 0.2])
    ground -= torch.tensor([0, 10.24, 1.8, 0])
    points = torch.cat([surface(boxes, 120, g), ground])
    sample = torch.cat([batch.repeat_interleave(120), torch.arange(1000) % 2])
    matched = assign_per_class(anchors, boxes, labels, batch, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=150)
    for _ in range(150):
        terms = detection_loss(model(points, sample, 2), anchors, boxes, matched)
        optimizer.zero_grad()
        (terms["cls"] + 2 * terms["box"] + 0.2 * terms["dir"]).backward()
        optimizer.step()
        schedule.step()

    model.train()  # the running statistics of so short a run lag behind
    found = decode(model(points, sample, 2), anchors, score_threshold=0.3)
    for index, detections in enumerate(found):
        truth = batch == index
        assert len(detections.boxes) == truth.sum()
        overlap = iou_3d(boxes[truth], detections.boxes)
        best = overlap.max(1)
        assert (best.values > 0.7).all()
        assert torch.equal(detections.labels[best.indices], labels[truth])
        assert (torch.cos(detections.boxes[best.indices, 6] - boxes[truth, 6]) > 0.9).all()
