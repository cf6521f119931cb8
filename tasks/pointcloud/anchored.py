"""What an anchor head's outputs mean: who answers for which object, the loss, the weight of each row, detections."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud.anchors import IGNORED, Anchors, assign_per_class
from tasks.pointcloud.decode import Detections, decode
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.head import balanced
from tasks.pointcloud.loss import detection_loss
from tasks.pointcloud.motion import Pose, carry_map
from tasks.pointcloud.peaks import gaussian_peaks
from tasks.pointcloud.second import VoxelOutputs


class AnchoredHead:
    """Outputs of ``PointPillars`` and ``SECOND``, over their anchors.

    Args:
        anchors: That the outputs are relative to.
        score_threshold: Detections at or below it are dropped.
    """

    terms: ClassVar[tuple[str, ...]] = ("cls", "box", "dir")

    def __init__(self, anchors: Anchors, score_threshold: float) -> None:
        self.anchors, self.score_threshold = anchors, score_threshold

    def mark(self, scores: Logits, batch: Batch) -> Logits:
        """Gives class scores (B, A, C) mask and weight: anchors on objects and all others weigh the same in sum."""
        return balanced(scores, self._matched(batch) >= 0, batch)

    def peaks(self, batch: Batch, count: int) -> Tensor:
        """Returns Gaussians around the centres of objects, the same for all anchors of a cell, (B, count)."""
        where, targets = self.anchors, batch.targets
        given = targets["boxes"], targets["batch"], len(batch)
        drawn = gaussian_peaks(*given, where.low, where.cell, where.grid).flatten(1)
        return drawn.repeat_interleave(count // drawn.shape[1], 1)

    def carry(self, scores: Logits, pose: Pose) -> Logits:
        """Carries scores from cell to cell; a cell's two yaws stay, which suits turns of much less than a quarter."""
        return carry_map(scores, pose, self.anchors.grid)

    def loss(self, model: nn.Module, outputs: PillarOutputs | VoxelOutputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of :func:`~tasks.pointcloud.loss.detection_loss`."""
        matched = self._matched(batch)
        if batch.supervised is not None:
            matched = torch.where(batch.supervised[:, None], matched, IGNORED)
        return detection_loss(outputs, self.anchors, batch.targets["boxes"], matched)

    def decode(self, model: nn.Module, outputs: PillarOutputs | VoxelOutputs) -> list[Detections]:
        """Returns the detections of each sample; see :func:`~tasks.pointcloud.decode.decode`."""
        self.anchors.to(outputs.cls.device)
        return decode(outputs, self.anchors, self.score_threshold)

    def _matched(self, batch: Batch) -> Tensor:
        """Assigns anchors once per batch, whoever asks first."""
        if "matched" not in batch.memo:
            self.anchors.to(batch.ids.device)
            targets = batch.targets
            batch.memo["matched"] = assign_per_class(
                self.anchors, targets["boxes"], targets["labels"], targets["batch"], len(batch)
            )
        matched: Tensor = batch.memo["matched"]
        return matched
