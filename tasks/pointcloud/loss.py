"""The supervised loss of an anchor-based 3-D detector, as in SECOND and PointPillars."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from kdbench.base.collectives import normalizer
from tasks.pointcloud.anchors import IGNORED, YAWS, Anchors, encode, heading_bin
from tasks.pointcloud.detector import PillarOutputs
from tasks.pointcloud.second import VoxelOutputs


def detection_loss(
    outputs: PillarOutputs | VoxelOutputs, anchors: Anchors, boxes: Tensor, matched: Tensor
) -> dict[str, Tensor]:
    """Computes the three terms, each a sum over anchors divided by the positives of the batch (at least 1).

    ``cls`` is the focal loss (alpha 0.25, gamma 2) of the class sigmoids over all anchors that are not ignored, ``box``
    the smooth L1 (beta 1/9) of the box codes of the positives, with sin(a - b) for the yaw, and ``dir`` the
    cross-entropy of their heading bins. Computed in float32 whatever the dtype of the outputs.

    Args:
        outputs: Of a batch of B samples.
        anchors: The A anchors.
        boxes: Ground truth of the whole batch, (N, 7).
        matched: What ``assign_per_class`` returned, (B, A).
    """
    classes = len(anchors.classes)
    positive = matched >= 0
    sample, anchor = positive.nonzero(as_tuple=True)
    count = normalizer(positive.sum())

    # Over (B, sites, class, yaw): an anchor's label can only be the class it belongs to.
    own = torch.eye(classes, device=matched.device)[:, None]
    target = (positive.view(len(matched), -1, classes, len(YAWS), 1) * own).view(len(matched), -1, classes)
    focal = sigmoid_focal_loss(outputs.cls.float(), target, alpha=0.25, gamma=2)
    cls = (focal * (matched != IGNORED)[..., None]).sum()

    truth = boxes[matched[sample, anchor]].float()
    code = encode(truth, anchors.boxes[anchor])
    said = outputs.box[sample, anchor].float()
    # |sin a cos b - cos a sin b| = |sin(a - b)|: right for boxes that are the same half a turn apart.
    difference = torch.cat([said[:, :6] - code[:, :6], torch.sin(said[:, 6:] - code[:, 6:])], 1)
    box = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="sum", beta=1 / 9)

    heading = outputs.direction[sample, anchor].float()
    direction = F.cross_entropy(heading, heading_bin(truth[:, 6]), reduction="sum")
    return {"cls": cls / count, "box": box / count, "dir": direction / count}
