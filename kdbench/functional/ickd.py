"""Inter-channel correlation: which channels of a grid are active together."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, safe_mean, upcast


def channel_correlation(feature: Tensor) -> Tensor:
    """Products of the channels of each sample, ``G = rownorm(F F^T)`` with F (C, positions).

    A channel without any activation has the row zero, and no gradient comes to it from its scaling.

    Args:
        feature: (B, C, *space).

    Returns:
        (B, C, C) with rows of unit l2 norm, float32 for low-precision input.

    Example:
        >>> channel_correlation(torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
        tensor([[[0.7071, 0.7071],
                 [0.4472, 0.8944]]])
    """
    flat = upcast(feature).flatten(2)
    with full_precision(flat):
        products = flat @ flat.transpose(1, 2)
    norm = torch.linalg.vector_norm(products, dim=2, keepdim=True)
    return products * torch.where(norm > 1e-12, 1 / norm.clamp_min(1e-12), 0.0)


def channel_correlation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the inter-channel correlations, ``mean_b ||G_s - G_t||_F^2 / C``.

    Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation (ICCV 2021), ICKD-C,
    with the scale of the authors' code. The positions may differ, the channels must not.

    Args:
        student: (B, C, *space_s).
        teacher: (B, C, *space_t).

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: batch sizes or channels differ.

    Example:
        >>> channel_correlation_loss(torch.eye(2)[None], torch.ones(1, 2, 3))
        tensor(0.5858)
    """
    if min(student.ndim, teacher.ndim) < 3 or student.shape[:2] != teacher.shape[:2]:
        raise KDBenchError(
            f"channel_correlation_loss: the student has shape {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}, expected (B, C, *space) with one batch size and as many channels; project one"
        )
    difference = channel_correlation(student) - channel_correlation(teacher)
    return safe_mean(difference.square().sum(dim=2))
