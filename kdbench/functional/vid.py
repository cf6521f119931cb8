"""Variational information distillation: a Gaussian model of the teacher's feature given the student's."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def softplus_inverse(value: float) -> float:
    """Returns the number whose softplus is ``value`` > 0.

    Example:
        >>> round(softplus_inverse(5.0), 4)
        4.9932
    """
    return value + math.log(-math.expm1(-value))


def vid_loss(mean: Tensor, teacher: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Negative log-likelihood of the teacher's grid under a Gaussian with one variance a channel.

    Ahn et al., Variational Information Distillation for Knowledge Transfer (CVPR 2019), section 2: the mean of
    ``1/2 ((t - mu)^2 / var_c + log var_c)`` with ``var_c = softplus(scale_c) + eps``; the constant is left out. The
    paper's sum over elements becomes a mean, as in RepDistiller. It may be negative.

    Args:
        mean: mu, predicted from the student (B, C, *space).
        teacher: same shape.
        scale: (C,) variances before the softplus.
        eps: least variance.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> vid_loss(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), torch.tensor([softplus_inverse(1.0)]), eps=0.0)
        tensor(0.5000)
    """
    check_same_shape(mean, teacher, "vid_loss")
    if scale.shape != mean.shape[1:2]:
        raise KDBenchError(f"vid_loss: found scale {tuple(scale.shape)}, expected ({mean.shape[1]},): one a channel")
    variance = (F.softplus(upcast(scale)) + eps).reshape(-1, *[1] * (mean.dim() - 2))
    return safe_mean((upcast(mean) - upcast(teacher)).square() / variance + variance.log()) / 2
