"""What outputs over points mean: which point answers for which object, both stages' losses, detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from kdbench.base.collectives import normalizer
from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud import anchors as coding
from tasks.pointcloud.anchors import BACKGROUND, IGNORED
from tasks.pointcloud.boxes import corners, inside, iou_3d, limit_period, rotated_nms, to_bev
from tasks.pointcloud.decode import Detections
from tasks.pointcloud.detector import rank
from tasks.pointcloud.head import balanced
from tasks.pointcloud.motion import Pose
from tasks.pointcloud.pointrcnn import PointOutputs, PointRCNN, Proposals, canonical, encode, refined, upright
from tasks.pointcloud.pointset import dense

MARGIN = 0.1  # m around an object, where points are neither its own nor background
BETA = 1 / 9
TRAIN_OVERLAP, TEST_OVERLAP = 0.8, 0.85  # of proposals
POSITIVE, NEAR = 0.55, 0.1  # overlap with an object from which on a proposal is its own, and from which on near it
SURE, UNSURE = 0.7, 0.25  # overlap from which on the target of the score is 1, and up to which it is 0
HALF, HARD = 0.5, 0.8  # positives of the sampled proposals at most; near ones of the rest
NMS = 0.1
MOST = 100  # detections of a scan


class PointwiseHead:
    """Outputs of ``PointRCNN``.

    Args:
        classes: Names, in the order of the logits.
        score_threshold: Detections at or below it are dropped.
    """

    terms: ClassVar[tuple[str, ...]] = ("cls", "box", "roi_cls", "roi_box", "corner")

    def __init__(self, classes: Sequence[str], score_threshold: float) -> None:
        self.sizes = torch.tensor([coding.of_class(name, coding.KITTI_ANCHORS).size for name in classes])
        self.score_threshold = score_threshold

    def mark(self, scores: Logits, batch: Batch) -> Logits:
        """Gives class scores (B, N, C) mask and weight: points in objects and all others weigh the same in sum."""
        return balanced(scores, self._matched(batch, scores.values.shape[1]) >= 0, batch)

    def peaks(self, batch: Batch, count: int) -> Tensor:
        """Returns one for points in an object, zero for others, (B, count)."""
        return (self._matched(batch, count) >= 0).float()

    def carry(self, scores: Logits, pose: Pose) -> Logits:
        """Leaves scores as they are: they move with their points, whose order stays."""
        return scores

    def loss(self, model: PointRCNN, outputs: PointOutputs, batch: Batch) -> dict[str, Tensor]:
        """Returns ``cls`` and ``box`` of the first stage, ``roi_cls``, ``roi_box`` and ``corner`` of the second.

        Each is a sum over points, or over boxes that the second stage looks at, divided by the positives of the batch;
        ``roi_cls`` by all boxes.
        """
        matched = self._matched(batch, outputs.cls.shape[1])
        if batch.supervised is not None:
            matched = torch.where(batch.supervised[:, None], matched, IGNORED)
        return {**self._first(outputs, batch, matched), **self._second(model, outputs, batch)}

    def _first(self, outputs: PointOutputs, batch: Batch, matched: Tensor) -> dict[str, Tensor]:
        positive = matched >= 0
        count = normalizer(positive.sum())
        own = matched[positive]
        labels, truth = batch.targets["labels"][own], batch.targets["boxes"][own].float()
        target = torch.zeros_like(outputs.cls, dtype=torch.float32)
        target[positive] = F.one_hot(labels, target.shape[2]).float()
        focal = sigmoid_focal_loss(outputs.cls.float(), target, alpha=0.25, gamma=2)
        code = encode(truth, outputs.xyz[positive], self.sizes.to(truth)[labels])
        box = F.smooth_l1_loss(outputs.box[positive].float(), code, reduction="sum", beta=BETA)
        return {"cls": (focal * (matched != IGNORED)[..., None]).sum() / count, "box": box / count}

    def _second(self, model: PointRCNN, outputs: PointOutputs, batch: Batch) -> dict[str, Tensor]:
        proposals = model.propose(outputs, TRAIN_OVERLAP)
        if batch.supervised is not None:
            proposals = proposals.select(batch.supervised[proposals.sample])
        overlap, owner = assign(proposals, batch)
        chosen = choose(proposals.sample, overlap, model.sampled, len(batch))
        proposals, overlap, owner = proposals.select(chosen), overlap[chosen], owner[chosen]
        scores, codes = (values.float() for values in model.refine(outputs, proposals))

        target = ((overlap - UNSURE) / (SURE - UNSURE)).clamp(0, 1)
        cls = F.binary_cross_entropy_with_logits(scores, target, reduction="sum")
        positive = overlap >= POSITIVE
        count = normalizer(positive.sum())
        frames, truth = proposals.boxes[positive], batch.targets["boxes"][owner[positive]].float()
        code = coding.encode(canonical(truth, frames), upright(frames[:, 3:6]))
        box = F.smooth_l1_loss(codes[positive], code, reduction="sum", beta=BETA)
        corner = corner_distance(refined(codes[positive], frames), truth).sum()
        return {
            "roi_cls": cls / normalizer(torch.tensor(len(scores), device=scores.device)),
            "roi_box": box / count,
            "corner": corner / count,
        }

    @torch.no_grad()
    def decode(self, model: PointRCNN, outputs: PointOutputs) -> list[Detections]:
        """Looks at the best boxes again and returns what is left of them, best first; classes are the first stage's."""
        proposals = model.propose(outputs, TEST_OVERLAP)
        logits, codes = model.refine(outputs, proposals)
        scores = logits.float().sigmoid()
        boxes = refined(codes.float(), proposals.boxes)
        boxes[:, 6] = limit_period(boxes[:, 6], period=2 * math.pi)
        (sure,) = (scores > self.score_threshold).nonzero(as_tuple=True)
        kept = sure[rotated_nms(to_bev(boxes[sure]), scores[sure], NMS, labels=proposals.sample[sure])]
        kept = kept[proposals.sample[kept].argsort(stable=True)]
        counts = proposals.sample[kept].bincount(minlength=len(outputs.cls)).tolist()
        return [
            Detections(boxes[index[:MOST]], scores[index[:MOST]], proposals.labels[index[:MOST]])
            for index in kept.split(counts)
        ]

    def _matched(self, batch: Batch, count: int) -> Tensor:
        """Returns the object that each point read lies in, background, or that it counts for neither, (B, N)."""
        name = f"matched {count}"
        if name not in batch.memo:
            inputs = batch.inputs
            xyz = dense(inputs["points"][:, :3], inputs["batch"], len(batch), count)
            batch.memo[name] = match(xyz, batch.targets["boxes"], batch.targets["batch"])
        matched: Tensor = batch.memo[name]
        return matched


@torch.no_grad()
def match(xyz: Tensor, boxes: Tensor, sample: Tensor) -> Tensor:
    """Says which object each point lies in.

    Args:
        xyz: (B, N, 3).
        boxes: Objects of the whole batch, (M, 7).
        sample: The sample of each, (M,).

    Returns:
        (B, N): the first object that a point is in, ``IGNORED`` within 0.1 m of one, else ``BACKGROUND``.
    """
    points = xyz[sample]
    around, within = (inside(points, boxes, margin) for margin in (MARGIN, 0.0))
    matched = torch.full(xyz.shape[:2], BACKGROUND, device=xyz.device)
    box, point = around.nonzero(as_tuple=True)
    matched[sample[box], point] = IGNORED
    box, point = within.nonzero(as_tuple=True)
    place = sample[box] * xyz.shape[1] + point
    matched.view(-1).scatter_reduce_(0, place, box, "amin", include_self=False)
    return matched


@torch.no_grad()
def assign(proposals: Proposals, batch: Batch) -> tuple[Tensor, Tensor]:
    """Returns how much each proposal overlaps an object of its class by volume, (R,), and which that is, (R,)."""
    targets = batch.targets
    if len(targets["boxes"]) == 0:
        return proposals.boxes.new_zeros(len(proposals.boxes)), torch.zeros_like(proposals.labels)
    same = (proposals.sample[:, None] == targets["batch"]) & (proposals.labels[:, None] == targets["labels"])
    overlap, owner = (iou_3d(proposals.boxes, targets["boxes"].float()) * same).max(1)
    return overlap, owner


@torch.no_grad()
def choose(sample: Tensor, overlap: Tensor, number: int, size: int) -> Tensor:
    """Chooses the proposals that the second stage learns from.

    Half of those of a sample at most are an object's, of the rest four in five near one, as far as there are such. In
    each of the three groups the choice is spread evenly over the order.

    Args:
        sample: The sample of each proposal, (R,), best first within it.
        overlap: With an object of its class, (R,).
        number: Proposals of a sample that are chosen.
        size: Samples of the batch, B.

    Returns:
        (R,) bool.
    """
    kind = torch.where(overlap >= POSITIVE, 0, torch.where(overlap >= NEAR, 1, 2))
    group = sample * 3 + kind
    counts = torch.bincount(group, minlength=3 * size).view(size, 3)
    positive = counts[:, 0].clamp(max=int(HALF * number))
    rest = number - positive
    near = torch.minimum(counts[:, 1], (rest * HARD).ceil().long())
    far = torch.minimum(counts[:, 2], rest - near)
    near = torch.minimum(counts[:, 1], rest - far)
    quota = torch.stack([positive, near, far], 1).flatten()[group]
    place, total = rank(group), counts.flatten()[group]
    return (place + 1) * quota // total > place * quota // total


def corner_distance(boxes: Tensor, truth: Tensor) -> Tensor:
    """Mean Huber distance (1 m) of the corners of boxes (R, 7) to those of true ones, either way round: (R,).

    Qi et al., "Frustum PointNets", CVPR 2018, section 4.4, here by the nearer of the two ways for each corner.
    """
    turned = torch.cat([truth[:, :6], truth[:, 6:] + math.pi], 1)
    own = corners(boxes)
    apart = torch.minimum(*((own - corners(other)).norm(dim=-1) for other in (truth, turned)))
    return F.huber_loss(apart, torch.zeros_like(apart), reduction="none").mean(1)
