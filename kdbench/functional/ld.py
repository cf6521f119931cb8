"""Localisation distillation: what the teacher says of each edge of a box, and where that is worth learning.

Zheng, Ye, Wang, Ren, Zuo, Hou & Cheng, Localization Distillation for Dense Object Detection (CVPR 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou, distance_box_iou

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import check_same_shape, upcast


def localisation_loss(student: Tensor, teacher: Tensor, weight: Tensor, temperature: float = 10.0) -> Tensor:
    """Divergence of the laws of a box's edges, ``T^2 / (E n) sum_e KL(softmax(t_e / T) || softmax(s_e / T))``.

    Its sum over rows is a mean over samples, E being the edges of a box and n the bins of a law.

    Args:
        student: logits of each edge (B, A, E, n).
        teacher: Same shape.
        weight: of each row, not negative (B, A).
        temperature: T > 0.

    Returns:
        A scalar, float32 for low-precision input; zero for no samples or weights.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> edges = torch.tensor([8.0, 0.0]).expand(1, 3, 4, 2)
        >>> localisation_loss(torch.zeros(1, 3, 4, 2), edges, torch.tensor([[1.0, 0.0, 0.5]]), temperature=4.0)
        tensor(3.9338)
    """
    check_same_shape(student, teacher, "localisation_loss")
    bins = student.shape[-1]
    divergence = categorical_kl(student.reshape(-1, bins), teacher.reshape(-1, bins), temperature) / max(bins, 1)
    by_row = divergence.view(student.shape[:-1]).sum(2) / max(student.shape[2], 1)
    return temperature**2 * (upcast(weight) * by_row).sum() / max(len(student), 1)


def valuable_region(
    boxes: Tensor, labels: Tensor, anchors: Tensor, level: Tensor, share: float = 0.25, candidates: int = 9
) -> Tensor:
    """Rows around those that are assigned to a box, and how much each counts: its largest overlap with such a box.

    A row is valuable to a box where ``share * threshold <= DIoU < threshold``. The threshold is that of ATSS, mean plus
    standard deviation of the IoU of the candidates: on each level as many anchors as lie nearest to the box's centre.

    Args:
        boxes: left, top, right, bottom (B, M, 4).
        labels: integers (B, M), negative where there is no box.
        anchors: (A, 4) likewise.
        level: of the pyramid, of each anchor, integers from 0 (A,).
        share: of the threshold, from 0 to 1.
        candidates: on each level.

    Returns:
        (B, A), zero outside of the region.

    Example:
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0], [9.0, 0.0, 13.0, 4.0]])
        >>> valuable_region(anchors[None, :1], torch.tensor([[1]]), anchors, torch.zeros(3, dtype=torch.long))
        tensor([[0.0000, 0.3333, 0.0000]])
    """
    (batch, count), rows = labels.shape, len(anchors)
    if not batch * count * rows:
        return anchors.new_zeros(batch, rows)
    flat, anchors = upcast(boxes).flatten(0, 1), upcast(anchors)
    overlap, distant = box_iou(flat, anchors), distance_box_iou(flat, anchors)
    apart = torch.cdist(_centres(flat), _centres(anchors), compute_mode="donot_use_mm_for_euclid_dist")
    near = []
    for of_level in level.unique():
        found = (level == of_level).nonzero()[:, 0]
        places = apart[:, found].topk(min(candidates, len(found)), largest=False).indices
        near.append(overlap[:, found].gather(1, places))
    chosen = torch.cat(near, 1)
    threshold = chosen.mean(1, keepdim=True) + chosen.std(1, correction=min(1, chosen.shape[1] - 1), keepdim=True)
    valuable = (distant < threshold) & (distant >= share * threshold) & (labels.flatten() >= 0)[:, None]
    return torch.where(valuable, overlap, 0.0).view(batch, count, rows).amax(1)


def _centres(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2
