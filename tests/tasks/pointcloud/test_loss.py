from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdbench.base import rng
from tasks.pointcloud.anchors import BACKGROUND, IGNORED, Anchors, assign_per_class
from tasks.pointcloud.detector import PillarOutputs, PointPillars
from tasks.pointcloud.loss import detection_loss

RANGE = (0.0, -2.56, -3.0, 5.12, 2.56, 1.0)


def make_case(count: int = 5) -> tuple[PillarOutputs, Anchors, Tensor, Tensor]:
    g = rng.generator(0, "loss")
    anchors = Anchors(RANGE, (8, 8))
    batch, labels = torch.arange(count) % 2, torch.arange(count) % 3
    u = torch.rand(count, 7, generator=g)
    centre = u[:, :3] * torch.tensor([5.0, 5.0, 1.0]) - torch.tensor([0.0, 2.5, 1.0])
    boxes = torch.cat([centre, anchors.sizes[labels] * (0.9 + 0.2 * u[:, 3:6]), u[:, 6:] * 9 - 4], 1)
    cls, box, direction = (torch.randn(2, len(anchors), k, generator=g).requires_grad_() for k in (3, 7, 2))
    empty = torch.zeros(0)
    outputs = PillarOutputs(cls, box, direction, empty, empty, empty)
    return outputs, anchors, boxes, assign_per_class(anchors, boxes, labels, batch, 2)


def reference(outputs: PillarOutputs, anchors: Anchors, boxes: Tensor, matched: Tensor) -> dict[str, float]:
    """The equations, one anchor and one number at a time, in double precision."""
    cls = box = direction = 0.0
    positives = 0
    for sample, row in enumerate(matched.tolist()):
        for index, truth in enumerate(row):
            if truth != IGNORED:
                for kind, logit in enumerate(outputs.cls[sample, index].tolist()):
                    p = 1 / (1 + math.exp(-logit))
                    hit = truth >= 0 and index // 2 % 3 == kind
                    cls -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
            if truth < 0:
                continue
            positives += 1
            x, y, z, length, width, height, yaw = boxes[truth].tolist()
            ax, ay, az, al, aw, ah, ayaw = anchors.boxes[index].tolist()
            diagonal = math.hypot(al, aw)
            target = [(x - ax) / diagonal, (y - ay) / diagonal, (z - az) / ah]
            target += [math.log(length / al), math.log(width / aw), math.log(height / ah)]
            said = outputs.box[sample, index].tolist()
            differences = [a - b for a, b in zip(said, target, strict=False)]
            differences.append(math.sin(said[6] - (yaw - ayaw)))
            for d in map(abs, differences):
                box += 4.5 * d * d if d < 1 / 9 else d - 1 / 18
            a, b = outputs.direction[sample, index].tolist()
            heading = 0 if (yaw + math.pi / 2) % (2 * math.pi) < math.pi else 1
            direction += math.log(math.exp(a) + math.exp(b)) - (a, b)[heading]
    count = max(positives, 1)
    return {"cls": cls / count, "box": box / count, "dir": direction / count}


def test_terms_equal_an_independent_reference():
    outputs, anchors, boxes, matched = make_case()
    terms = detection_loss(outputs, anchors, boxes, matched)
    assert (matched == IGNORED).any()
    assert (matched >= 0).sum() > 5
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        reference(outputs, anchors, boxes, matched), rel=1e-5
    )


def test_gradient_reaches_what_each_term_reads():
    outputs, anchors, boxes, matched = make_case()
    terms = detection_loss(outputs, anchors, boxes, matched)
    for name, values, rows in (
        ("cls", outputs.cls, matched != IGNORED),
        ("box", outputs.box, matched >= 0),
        ("dir", outputs.direction, matched >= 0),
    ):
        (gradient,) = torch.autograd.grad(terms[name], values)
        assert torch.equal(gradient.abs().sum(2) > 0, rows), name


def test_half_a_turn_more_changes_only_the_heading():
    outputs, anchors, boxes, matched = make_case()
    before = detection_loss(outputs, anchors, boxes, matched)
    boxes[:, 6] += math.pi
    after = detection_loss(outputs, anchors, boxes, matched)
    torch.testing.assert_close(after["box"], before["box"], rtol=1e-5, atol=0)
    assert after["dir"] != before["dir"]


def test_batch_without_boxes():
    outputs, anchors, _, _ = make_case()
    none = torch.zeros(0, dtype=torch.long)
    matched = assign_per_class(anchors, torch.zeros(0, 7), none, none, 2)
    assert (matched == BACKGROUND).all()
    terms = detection_loss(outputs, anchors, torch.zeros(0, 7), matched)
    expected = reference(outputs, anchors, torch.zeros(0, 7), matched)
    assert terms["cls"].item() == pytest.approx(expected["cls"], rel=1e-5)
    assert terms["box"] == 0
    assert terms["dir"] == 0
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert outputs.box.grad is not None
    assert not outputs.box.grad.any()


def test_float32_under_autocast():
    _, anchors, boxes, matched = make_case()
    with rng.scope(0, "model"):
        model = PointPillars(0.125, RANGE, (0.32, 0.32))
    points = torch.rand(200, 4, generator=rng.generator(0, "points")) * torch.tensor([5, 5, 2, 1])
    points -= torch.tensor([0, 2.5, 2, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(points, torch.arange(200) % 2, 2)
        terms = detection_loss(outputs, anchors, boxes, matched)
    assert outputs.cls.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        reference(outputs, anchors, boxes, matched), rel=1e-5
    )
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
