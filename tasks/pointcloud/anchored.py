"""What an anchor head's outputs mean: who answers for which object, the loss, the weight of each row, detections."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kdbench.base.collectives import normalizer
from kdbench.features import Logits
from kdbench.task import Batch
from tasks.pointcloud.anchors import IGNORED, Anchors, assign_per_class
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.loss import detection_loss
from tasks.pointcloud.second import VoxelOutputs


class AnchoredHead:
    """Outputs of ``PointPillars`` and ``SECOND``, over their anchors.

    Args:
        anchors: That the outputs are relative to.
    """

    def __init__(self, anchors: Anchors) -> None:
        self.anchors = anchors

    def mark(self, scores: Logits, batch: Batch) -> Logits:
        """Gives class scores (B, A, C) the mask and the weight of each anchor.

        Foreground and background weigh the same in sum, as there are hundreds of times more anchors on background;
        those that the supervised loss ignores count as background.
        """
        foreground = self._matched(batch) >= 0
        positives = normalizer(foreground.sum())
        weight = torch.where(foreground, 1.0 / positives, 1.0 / (foreground.numel() - positives).clamp(min=1))
        mask = None if batch.distilled is None else batch.distilled[:, None].expand(weight.shape)
        return replace(scores, mask=mask, weight=weight)

    def loss(self, outputs: PillarOutputs | VoxelOutputs, batch: Batch) -> dict[str, Tensor]:
        """Returns the terms of :func:`~tasks.pointcloud.loss.detection_loss`."""
        matched = self._matched(batch)
        if batch.supervised is not None:
            matched = torch.where(batch.supervised[:, None], matched, IGNORED)
        return detection_loss(outputs, self.anchors, batch.targets["boxes"], matched)

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
