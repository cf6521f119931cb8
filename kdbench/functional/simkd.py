"""Feature alignment of SimKD."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast
from kdbench.functional.pool import average_pool


def simkd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the student's projected map and the teacher's last map.

    Chen et al., Knowledge Distillation with the Reused Teacher Classifier (CVPR 2022): ``||f_t - P(f_s)||^2``, as the
    mean over all elements that the released code takes. A larger teacher map is average-pooled to the student's size.

    Args:
        student: projected map P(f_s), (B, C, *space).
        teacher: map (B, C, *space_t), no axis shorter than the student's.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> simkd_loss(torch.zeros(1, 1, 1), torch.tensor([[[1.0, 3.0]]]))
        tensor(4.)
    """
    teacher = average_pool(teacher, student.shape[2:])
    check_same_shape(student, teacher, "simkd_loss")
    return safe_mean((upcast(student) - upcast(teacher)).square())
