"""What a head of centres says: heat maps of objects, the loss, the weight of each cell, detections.

Yin, Zhou & Krähenbühl, "Center-based 3D Object Detection and Tracking", CVPR 2021, sections 3 and 4; the focal
loss is that of Law & Deng, "CornerNet", ECCV 2018. Where the papers leave a choice, that of the authors' code
(tianweiy/CenterPoint) is taken.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.base.collectives import normalizer
from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud.centerpoint import Cells, decode, encode, maxima
from tasks.pointcloud.decode import Detections, suppress
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.head import balanced
from tasks.pointcloud.motion import Pose, carry_map
from tasks.pointcloud.peaks import gaussian_peaks
from tasks.pointcloud.second import VoxelOutputs

TOP_K, NMS, MAX_KEEP = 200, 0.2, 83  # peaks of a scan looked at, overlap of two at most, detections kept


class Truth(NamedTuple):
    """What the objects of a batch ask for.

    Attributes:
        heat: From 0 to 1 by cell and class, 1 at a centre, (B, A, C).
        sample: Of each object in the grid, (N,).
        cell: That holds its centre, (N,).
        label: Its class, (N,).
        codes: Its box, (N, 8); see :func:`~tasks.pointcloud.centerpoint.encode`.
    """

    heat: Tensor
    sample: Tensor
    cell: Tensor
    label: Tensor
    codes: Tensor


@torch.no_grad()
def targets(boxes: Tensor, labels: Tensor, batch: Tensor, size: int, classes: int, cells: Cells) -> Truth:
    """Draws the objects of each class; see :func:`~tasks.pointcloud.peaks.gaussian_peaks`.

    Those centred outside the grid are left out.

    Args:
        boxes: Objects of the whole batch, (N, 7).
        labels: Their classes, (N,).
        batch: The sample of each, (N,).
        size: Samples of the batch, B.
        classes: How many there are, C.
        cells: Of the head.
    """
    boxes = boxes.float()
    inside = cells.holds(cells.place(boxes).floor())
    boxes, labels, batch = boxes[inside], labels[inside], batch[inside]
    low, side = cells.low[::-1], cells.size[::-1]
    maps = gaussian_peaks(boxes, batch * classes + labels, size * classes, low, side, cells.grid)
    heat = maps.view(size, classes, -1).transpose(1, 2)
    x, y = cells.place(boxes).long().unbind(1)
    return Truth(heat, batch, y * cells.grid[1] + x, labels, encode(boxes, cells))


def centre_loss(
    outputs: PillarOutputs | VoxelOutputs, truth: Truth, supervised: Tensor | None = None
) -> dict[str, Tensor]:
    """Computes both terms, each a sum divided by the objects of the batch (at least 1), in float32.

    ``cls`` is CornerNet's focal loss (alpha 2, beta 4) of the heat maps, eq. 1 there; ``box`` the L1 distance of the
    eight values of a code at the cells of objects.

    Args:
        outputs: Of a batch of B samples.
        truth: What they should be.
        supervised: Samples that count, (B,) bool; None for all.
    """
    cls = outputs.cls.float()
    sample, cell, label, codes = truth[1:]
    free = cls.sigmoid().square() * F.softplus(cls) * (1 - truth.heat).pow(4)
    if supervised is not None:
        free = free * supervised[:, None, None]
        own = supervised[sample]
        sample, cell, label, codes = sample[own], cell[own], label[own], codes[own]
    count = normalizer(torch.tensor(len(sample), device=cls.device))
    at = cls[sample, cell, label]
    held = (-at).sigmoid().square() * F.softplus(-at)
    said = torch.cat([outputs.box[sample, cell], outputs.direction[sample, cell]], 1).float()
    return {"cls": (free.sum() + held.sum()) / count, "box": (said - codes).abs().sum() / count}


class CentredHead:
    """Outputs of ``CenterPillars`` and ``CenterVoxels``, over the cells of the head.

    Args:
        cells: Of the head.
        classes: How many there are.
        score_threshold: Detections at or below it are dropped.
    """

    terms: ClassVar[tuple[str, ...]] = ("cls", "box")

    def __init__(self, cells: Cells, classes: int, score_threshold: float) -> None:
        self.cells, self.classes, self.score_threshold = cells, classes, score_threshold

    def mark(self, scores: Logits, batch: Batch) -> Logits:
        """Gives class scores (B, A, C) mask and weight: cells under a Gaussian and all others weigh the same in sum."""
        return balanced(scores, (self._truth(batch).heat > 0).any(-1), batch)

    def peaks(self, batch: Batch, count: int) -> Tensor:
        """Returns the Gaussians of all classes, the greatest of each cell, (B, count)."""
        return self._truth(batch).heat.amax(-1)

    def carry(self, scores: Logits, pose: Pose) -> Logits:
        """Carries scores from cell to cell."""
        return carry_map(scores, pose, self.cells.grid)

    def loss(self, model: nn.Module, outputs: PillarOutputs | VoxelOutputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of :func:`centre_loss`."""
        return centre_loss(outputs, self._truth(batch), batch.supervised)

    @torch.no_grad()
    def decode(self, model: nn.Module, outputs: PillarOutputs | VoxelOutputs) -> list[Detections]:
        """Returns the detections of each sample: peaks among 3 x 3 cells that no better one of the class overlaps."""
        scores = maxima(outputs.cls, self.cells.grid)
        best = scores.amax(2)
        top = best.topk(min(TOP_K, best.shape[1])).indices
        rows = torch.arange(len(top), device=top.device)[:, None]
        codes = torch.cat([outputs.box[rows, top], outputs.direction[rows, top]], -1).float()
        return suppress(decode(codes, top, self.cells), scores[rows, top], self.score_threshold, NMS, MAX_KEEP)

    def _truth(self, batch: Batch) -> Truth:
        """Draws heat maps once per batch, whoever asks first."""
        if "centres" not in batch.memo:
            objects = batch.targets
            given = objects["boxes"], objects["labels"], objects["batch"]
            batch.memo["centres"] = targets(*given, len(batch), self.classes, self.cells)
        truth: Truth = batch.memo["centres"]
        return truth
