"""From the raw outputs of the detector to its detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.pointcloud import anchors as coding
from tasks.pointcloud.anchors import Anchors
from tasks.pointcloud.boxes import rotated_nms, to_bev
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.second import VoxelOutputs


class Detections(NamedTuple):
    """Detections of one sample, best first.

    Attributes:
        boxes: (K, 7), metres and radians, LiDAR frame.
        scores: (K,), in [0, 1].
        labels: Indices of their classes, (K,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def joined(detections: Sequence[Detections]) -> dict[str, Tensor]:
    """Joins the detections of a batch, sample after sample: tensors by name, ``batch`` says whose each is."""
    sample = torch.arange(len(detections), device=detections[0].boxes.device if detections else None)
    counts = torch.tensor([len(found.scores) for found in detections], device=sample.device)
    columns = {name: torch.cat([getattr(f, name) for f in detections]) for name in Detections._fields}
    return {**columns, "batch": sample.repeat_interleave(counts)}


@torch.no_grad()
def decode(
    outputs: PillarOutputs | VoxelOutputs,
    anchors: Anchors,
    score_threshold: float = 0.1,
    top_k: int = 100,
    nms: float = 0.01,
    max_keep: int = 50,
) -> list[Detections]:
    """Turns raw outputs into detections; the defaults are those of PointPillars on KITTI.

    Args:
        outputs: Of a batch of B samples.
        anchors: The anchors that the outputs are relative to.
        score_threshold: Only scores above it count.
        top_k: Anchors of a sample that are looked at: those with the highest score in any class.
        nms: Rotated BEV IoU above which a detection suppresses a worse one of its class.
        max_keep: Detections that a sample keeps at most.

    Returns:
        The detections of each of the B samples.
    """
    best = outputs.cls.float().amax(2)
    top = best.topk(min(top_k, best.shape[1])).indices
    rows = torch.arange(len(top), device=top.device)[:, None]

    scores = outputs.cls[rows, top].float().sigmoid()
    boxes = coding.decode(outputs.box[rows, top].float(), anchors.boxes[top])
    boxes[..., 6] = coding.with_heading(boxes[..., 6], outputs.direction[rows, top].argmax(-1))

    return suppress(boxes, scores, score_threshold, nms, max_keep)


@torch.no_grad()
def suppress(boxes: Tensor, scores: Tensor, score_threshold: float, nms: float, max_keep: int) -> list[Detections]:
    """Returns the detections of each of B samples among K candidates of each.

    Args:
        boxes: (B, K, 7), metres and radians.
        scores: By class, (B, K, C), in [0, 1].
        score_threshold: Only scores above it count.
        nms: Rotated BEV IoU above which a detection suppresses a worse one of its class.
        max_keep: Detections that a sample keeps at most.
    """
    batch_size, _, classes = scores.shape
    sample, rank, label = (scores > score_threshold).nonzero(as_tuple=True)
    found, score = boxes[sample, rank], scores[sample, rank, label]
    kept = rotated_nms(to_bev(found), score, nms, labels=sample * classes + label)
    kept = kept[sample[kept].argsort(stable=True)]  # by sample, best first within it
    counts = sample[kept].bincount(minlength=batch_size).tolist()
    return [
        Detections(found[index[:max_keep]], score[index[:max_keep]], label[index[:max_keep]])
        for index in kept.split(counts)
    ]
