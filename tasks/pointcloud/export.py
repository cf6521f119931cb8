"""What is exported of a detector: from the points of one scan to boxes; the rest is NumPy (``script.py``)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.pointcloud import anchors as coding
from tasks.pointcloud.anchors import Anchors
from tasks.pointcloud.detector import PillarOutputs, PointPillars


class Boxes(nn.Module):
    """Decodes what a detector says of one scan.

    Args:
        anchors: That it is relative to.
    """

    def __init__(self, anchors: Anchors) -> None:
        super().__init__()
        self.anchors = anchors

    def forward(self, cls: Tensor, box: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the box of each anchor (A, 7) in metres and radians, and its scores (A, classes) from 0 to 1."""
        # Made anew: a file would hold them all.
        boxes = coding.decode(box[0].float(), self.anchors.all_boxes())
        yaw = coding.with_heading(boxes[:, 6:], direction[0].argmax(-1, keepdim=True))
        return torch.cat([boxes[:, :6], yaw], 1), cls[0].float().sigmoid()


class Scan(nn.Module):
    """A ``PointPillars`` on one scan, whose points are described and sorted into pillars before.

    Args:
        model: Whose weights it shares.
        anchors: Of its head.
    """

    def __init__(self, model: PointPillars, anchors: Anchors) -> None:
        super().__init__()
        self.encoder, self.dense, self.decoder = model.encoder, model.dense_part(), Boxes(anchors)

    def forward(self, points: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (A, 7) and scores (A, classes).

        Args:
            points: As the encoder describes them, (P, columns + 6).
            cells: Where on the canvas each one is, y times its width plus x, (P,).
        """
        features, shift = self.encoder.inferred(points)
        height, width = self.encoder.grid
        # Cells without a point stay at minus infinity, which ReLU makes the zero of an empty canvas.
        canvas = features.new_full((height * width, features.shape[1]), -torch.inf)
        canvas = canvas.scatter_reduce(0, cells[:, None].expand_as(features), features, "amax")
        canvas = F.relu(canvas + shift).view(1, height, width, -1).permute(0, 3, 1, 2)
        boxes, scores = self.decoder(*self.dense(canvas))
        return boxes, scores


class Whole(nn.Module):
    """A detector of another class on the points of one scan as they are.

    Args:
        model: Called as ``model(points, batch, size)``.
        anchors: Of its head.
    """

    def __init__(self, model: nn.Module, anchors: Anchors) -> None:
        super().__init__()
        self.model, self.decoder = model, Boxes(anchors)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Returns boxes (A, 7) and scores (A, classes) for points (P, columns)."""
        outputs: PillarOutputs = self.model(points, torch.zeros_like(points[:, 0], dtype=torch.long), 1)
        boxes, scores = self.decoder(outputs.cls, outputs.box, outputs.direction)
        return boxes, scores
