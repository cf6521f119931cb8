"""Hierarchical context loss of ReviewKD: a squared distance on a pyramid of average-pooled grids."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast
from kdbench.functional.pool import average_pool


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean of squared distances between two grids at full size and pooled to 4, 2 and 1 cells an axis.

    Chen, Liu, Zhao & Jia, Distilling Knowledge via Knowledge Review (CVPR 2021), HCL, with the released
    code's weights: 1 at full size and half of the one before at each pooled size, divided by their sum. A size that
    would pool nothing is left out; a short axis keeps its cells.

    Args:
        student: fused feature (B, C, *space), one to three spatial axes.
        teacher: feature of the same shape.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> hierarchical_context_loss(torch.tensor([[[1.0, -1.0]]]), torch.zeros(1, 1, 2))
        tensor(0.6667)
    """
    check_same_shape(student, teacher, "hierarchical_context_loss")
    # Pooling is linear, so the difference is pooled once instead of both grids.
    difference = upcast(student) - upcast(teacher)
    space = tuple(difference.shape[2:])
    loss, weight, total = safe_mean(difference.square()), 1.0, 1.0
    for cells in (4, 2, 1):
        size = tuple(min(n, cells) for n in space)
        if size != space:
            weight /= 2
            total += weight
            loss = loss + weight * safe_mean(average_pool(difference, size).square())
    return loss / total
