"""Targets, losses and detections of outputs over points, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from kdbench.base import rng
from kdbench.task import Batch
from tasks.pointcloud.anchors import BACKGROUND, IGNORED
from tasks.pointcloud.anchors import encode as code
from tasks.pointcloud.boxes import corners, inside, iou_3d, rotated_iou_bev, to_bev
from tasks.pointcloud.pointrcnn import PointOutputs, Proposals, canonical, encode, refined, upright
from tasks.pointcloud.pointwise import POSITIVE, PointwiseHead, assign, choose, corner_distance, match
from tests.tasks.pointcloud import tiny
from tests.tasks.pointcloud.points import make_boxes, make_model, random, scene, some_outputs


@pytest.fixture(scope="module")
def head() -> PointwiseHead:
    return PointwiseHead(tiny.CLASSES, 0.1)


def test_points_are_matched_as_by_a_loop():
    xyz = random(2, 400, 3, name="xyz") * torch.tensor([18.0, 18, 2]) - torch.tensor([0.0, 9, 2])
    boxes, sample = make_boxes(12), torch.arange(12) % 2
    found = match(xyz, boxes, sample)
    assert {BACKGROUND, IGNORED} < set(found.unique().tolist())
    for s in range(2):
        for point, label in zip(xyz[s], found[s].tolist(), strict=True):
            own = [m for m in range(12) if sample[m] == s and inside(point[None, None], boxes[m : m + 1])]
            near = [m for m in range(12) if sample[m] == s and inside(point[None, None], boxes[m : m + 1], 0.1)]
            assert label == (own[0] if own else IGNORED if near else BACKGROUND)
    assert match(xyz, boxes[:0], sample[:0]).unique().tolist() == [BACKGROUND]


def test_proposals_are_assigned_to_objects_of_their_class():
    batch = scene()
    boxes = batch.targets["boxes"][[0, 0, 4, 1]] + torch.tensor([0.2, 0, 0, 0, 0, 0, 0])
    labels = batch.targets["labels"][[0, 1, 4, 1]]
    sample = torch.tensor([0, 0, 1, 1])
    found, owner = assign(Proposals(boxes, labels, sample), batch)
    table, targets = iou_3d(boxes, batch.targets["boxes"]), batch.targets
    expected = [
        max(
            (
                float(table[r, m])
                for m in range(6)
                if targets["batch"][m] == sample[r] and targets["labels"][m] == labels[r]
            ),
            default=0.0,
        )
        for r in range(4)
    ]
    assert expected[0] > 0.5 < expected[2]
    assert expected[1] == 0
    torch.testing.assert_close(found, torch.tensor(expected))
    assert owner[[0, 2]].tolist() == [0, 4]
    nothing = Batch(batch.inputs, {k: v[:0] for k, v in batch.targets.items()}, batch.ids)
    assert assign(Proposals(boxes, labels, sample), nothing)[0].tolist() == [0] * 4


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((40, 40, 40), (8, 7, 1)),
        ((0, 40, 40), (0, 13, 3)),
        ((2, 1, 40), (2, 1, 13)),
        ((2, 40, 0), (2, 14, 0)),
        ((1, 1, 1), (1, 1, 1)),
    ],
)
def test_what_the_second_stage_learns_from(counts, expected):
    level = torch.cat([torch.full((n,), v) for n, v in zip(counts, (0.6, 0.3, 0.0), strict=True)])
    overlap = level[torch.randperm(len(level), generator=rng.generator(0, "order"))].repeat(2)
    sample = torch.arange(2).repeat_interleave(len(level))
    chosen = choose(sample, overlap, 16, 2)
    for s in range(2):
        own = overlap[chosen & (sample == s)]
        assert tuple(int((own == v).sum()) for v in torch.tensor([0.6, 0.3, 0.0])) == expected
    far = ((overlap == 0.3) & (sample == 0)).nonzero()[:, 0]
    kept = chosen[far].nonzero()[:, 0]
    assert len(kept) < 3 or kept.diff().max() - kept.diff().min() <= 1  # evenly


def test_corner_distance_is_that_of_a_loop():
    boxes, truth = make_boxes(20, "a").double(), make_boxes(20, "b").double()
    boxes[:5] = truth[:5] + 0.05
    boxes[3, 6] += math.pi
    turned = truth.clone()
    turned[:, 6] += math.pi
    expected = []
    for own, one, other in zip(corners(boxes), corners(truth), corners(turned), strict=True):
        apart = [min(float((c - d).norm()), float((c - e).norm())) for c, d, e in zip(own, one, other, strict=True)]
        expected.append(sum(0.5 * d * d if d < 1 else d - 0.5 for d in apart) / 8)
    torch.testing.assert_close(corner_distance(boxes, truth), torch.tensor(expected, dtype=torch.float64))
    assert corner_distance(truth, turned).max() < 1e-12


def test_the_first_stage_s_loss_is_that_of_the_equations(head):
    batch, outputs = scene(), some_outputs()
    outputs = outputs._replace(xyz=make_model()(batch.inputs["points"], batch.inputs["batch"], 2).xyz)
    terms = head.loss(make_model(), outputs, batch)
    matched = match(outputs.xyz, batch.targets["boxes"], batch.targets["batch"])
    focal = box = 0.0
    positives = int((matched >= 0).sum())
    assert positives > 5
    for s, n in (matched != IGNORED).nonzero().tolist():
        own = int(matched[s, n])
        label = -1 if own < 0 else int(batch.targets["labels"][own])
        for c in range(3):
            p = float(outputs.cls[s, n, c].double().sigmoid())
            focal += -0.25 * (1 - p) ** 2 * math.log(p) if c == label else -0.75 * p**2 * math.log(1 - p)
        if own >= 0:
            code = encode(batch.targets["boxes"][own], outputs.xyz[s, n], head.sizes[label]).double()
            apart = (outputs.box[s, n].double() - code).abs()
            box += float(torch.where(apart < 1 / 9, 0.5 * apart**2 * 9, apart - 0.5 / 9).sum())
    assert terms["cls"].item() == pytest.approx(focal / positives, rel=1e-4)
    assert terms["box"].item() == pytest.approx(box / positives, rel=1e-4)


def test_the_second_stage_s_loss_is_that_of_the_equations(head, monkeypatch):
    """Boxes near objects are looked at; what the network says of them is given."""
    batch, model, outputs = scene(), make_model(), some_outputs()
    model.sampled = 40
    which = torch.arange(6).repeat(3)
    boxes = batch.targets["boxes"][which] + 0.5 * (random(18, 7, name="jitter") - 0.5) * torch.tensor(
        [1.0, 1, 1, 0, 0, 0, 1]
    )
    order = batch.targets["batch"][which].argsort(stable=True)
    proposals = Proposals(boxes[order], batch.targets["labels"][which][order], batch.targets["batch"][which][order])
    said = 2 * random(18, name="scores") - 1, random(18, 7, name="codes") - 0.5
    monkeypatch.setattr(model, "propose", lambda *_: proposals)
    monkeypatch.setattr(model, "refine", lambda *_: said)
    terms = head.loss(model, outputs, batch)
    overlap, owner = assign(proposals, batch)
    positive = overlap >= POSITIVE
    assert 3 < positive.sum() < 18
    cls = 0.0
    for logit, found in zip(said[0].double(), overlap.double().tolist(), strict=True):
        target = min(max((found - 0.25) / 0.45, 0.0), 1.0)
        p = float(logit.sigmoid())
        cls -= target * math.log(p) + (1 - target) * math.log(1 - p)
    assert terms["roi_cls"].item() == pytest.approx(cls / 18, rel=1e-4)
    frames, truth = proposals.boxes[positive], batch.targets["boxes"][owner[positive]]
    own = code(canonical(truth, frames), upright(frames[:, 3:6]))
    box = F.smooth_l1_loss(said[1][positive].double(), own.double(), reduction="sum", beta=1 / 9) / positive.sum()
    assert terms["roi_box"].item() == pytest.approx(box.item(), rel=1e-4)
    corner = corner_distance(refined(said[1][positive], frames), truth).mean()
    assert terms["corner"].item() == pytest.approx(corner.item(), rel=1e-4)


def test_samples_without_supervision_do_not_count(head):
    model, batch = make_model(), scene()
    outputs = model(batch.inputs["points"], batch.inputs["batch"], 2)
    batch.supervised = torch.tensor([True, False])
    found = head.loss(model, outputs, batch)
    alone = scene(1)
    first = PointOutputs(*(value[:1] for value in outputs))
    for name, value in head.loss(model, first, alone).items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name


def test_every_parameter_learns(head):
    model, batch = make_model().train(), scene()
    truth = batch.targets["boxes"]
    outputs = model(batch.inputs["points"], batch.inputs["batch"], 2)
    proposals = Proposals(truth, batch.targets["labels"], batch.targets["batch"])
    model.propose = lambda *_: proposals  # type: ignore[method-assign]
    sum(head.loss(model, outputs, batch).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith(("0.bias", "3.bias")):  # that BatchNorm takes away, or of dead units
            assert parameter.grad.abs().sum() > 0, name


def test_detections_are_what_the_second_look_makes_of_proposals(head, monkeypatch):
    model, outputs = make_model(), some_outputs()
    proposals = model.propose(outputs, 0.85)
    logits, codes = (
        6 * random(len(proposals.boxes), name="scores") - 4,
        0.1 * random(len(proposals.boxes), 7, name="codes"),
    )
    monkeypatch.setattr(model, "refine", lambda *_: (logits, codes))
    found = head.decode(model, outputs)
    boxes, scores = refined(codes, proposals.boxes), logits.sigmoid()
    for sample, detections in enumerate(found):
        order = [
            i for i in scores.argsort(descending=True).tolist() if proposals.sample[i] == sample and scores[i] > 0.1
        ]
        kept: list[int] = []
        for i in order:
            if not kept or rotated_iou_bev(to_bev(boxes[i : i + 1]), to_bev(boxes[kept])).max() <= 0.1:
                kept.append(i)
        assert len(kept) > 3
        torch.testing.assert_close(detections.scores, scores[kept])
        torch.testing.assert_close(detections.boxes[:, :6], boxes[kept, :6])
        assert detections.labels.equal(proposals.labels[kept])
