"""Similarity-preserving distillation: which samples of a batch look alike."""

from __future__ import annotations

from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, unit, upcast


def similarity_matrix(feature: Tensor) -> Tensor:
    """Row-normalised Gram matrix of a batch, ``G = rownorm(A A^T)`` with A (B, ...) flattened per sample.

    Tung & Mori (ICCV 2019), eq. 1 and 2.

    Returns:
        (B, B) with rows of unit l2 norm, float32 for low-precision input.

    Example:
        >>> import torch
        >>> similarity_matrix(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        tensor([[0.7071, 0.7071],
                [0.4472, 0.8944]])
    """
    flat = upcast(feature).flatten(1)
    with full_precision(flat):
        return unit(flat @ flat.T)


def similarity_preserving_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the batch similarity matrices, ``||G_t - G_s||_F^2 / b^2``.

    Tung & Mori, Similarity-Preserving Knowledge Distillation (ICCV 2019), eq. 1 to 4. Needs no projection: only the
    batch size must agree. A batch of one gives zero.

    Args:
        student: (B, ...).
        teacher: (B, ...), any other trailing shape.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> similarity_preserving_loss(torch.eye(2), torch.ones(2, 5))
        tensor(0.2929)
    """
    if student.shape[0] != teacher.shape[0] or min(student.ndim, teacher.ndim) < 2:
        raise KDBenchError(
            f"similarity_preserving_loss: the student has shape {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}, expected (B, ...) with one batch size"
        )
    difference = similarity_matrix(teacher) - similarity_matrix(student)
    return difference.square().sum() / max(student.shape[0], 1) ** 2
