"""Cross-head distillation: what the teacher's head says of the student's features.

Wang, Chen, Zheng, Li, Cheng & Hou, CrossKD: Cross-Head Knowledge Distillation for Object Detection (CVPR 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from kdbench.base.collectives import normalizer
from kdbench.functional.numerics import check_same_shape, spread, upcast


def align_scale(student: Tensor, teacher: Tensor) -> Tensor:
    """Gives each channel of the student's feature mean and deviation of the teacher's, over all cells of the batch.

    Args:
        student: (B, C, *space).
        teacher: Same shape.

    Returns:
        Same shape, float32 for low-precision input. A channel that does not vary takes the teacher's mean.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> align_scale(torch.tensor([[[0.0, 1.0, 2.0]]]), torch.tensor([[[5.0, 9.0, 7.0]]]))
        tensor([[[5., 7., 9.]]])
    """
    check_same_shape(student, teacher, "align_scale")
    rows, taught = (upcast(x).transpose(0, 1).flatten(1) for x in (student, teacher))
    if not rows.numel():
        return upcast(student)
    centred, norm, varies = spread(rows)
    _, wanted, _ = spread(taught)
    scaled = torch.where(varies, centred / torch.where(varies, norm, 1.0), 0.0) * wanted
    aligned = scaled + taught.mean(1, keepdim=True)
    return aligned.view(student.shape[1], len(student), *student.shape[2:]).transpose(0, 1)


def quality_focal_loss(student: Tensor, teacher: Tensor, positives: Tensor, beta: float = 1.0) -> Tensor:
    """Cross-entropy with the teacher's scores, weighed by how far off they are: ``sum |q_s - q_t|^beta BCE(q_s, q_t)``.

    Args:
        student: logits of independent sigmoids (N, C).
        teacher: Same shape.
        positives: number of rows that are assigned to a box, a scalar; the sum is divided by it, or by one.
        beta: >= 1.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> quality_focal_loss(torch.zeros(1, 1), torch.tensor([[-9.0]]), torch.tensor(2))
        tensor(0.1732)
    """
    check_same_shape(student, teacher, "quality_focal_loss")
    student, target = upcast(student), upcast(teacher).sigmoid()
    off = (student.sigmoid() - target).abs() ** beta
    losses = off * F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return losses.sum() / normalizer(positives.to(losses.dtype))


def box_overlap_loss(student: Tensor, teacher: Tensor, weight: Tensor, positives: Tensor) -> Tensor:
    """How little boxes overlap, ``sum w (1 - GIoU)``, divided by the rows that are assigned to a box.

    Args:
        student: left, top, right, bottom (N, 4).
        teacher: Same shape.
        weight: (N,), not negative.
        positives: a scalar; the sum is divided by it, or by one.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Raises:
        KDBenchError: shapes differ.

    Example:
        >>> first, second = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]])
        >>> box_overlap_loss(first, second, torch.ones(1), torch.tensor(1))
        tensor(0.5000)
    """
    check_same_shape(student, teacher, "box_overlap_loss")
    losses = upcast(weight) * generalized_box_iou_loss(upcast(student), upcast(teacher))
    return losses.sum() / normalizer(positives.to(losses.dtype))
