"""Overhaul of feature distillation: margin ReLU and partial distance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, upcast


def gaussian_margin(mean: Tensor, std: Tensor) -> Tensor:
    """Expected negative response ``E[x | x < 0]`` of a Gaussian, the margin of each channel.

    Heo et al., A Comprehensive Overhaul of Feature Distillation (ICCV 2019), the margin from batch normalisation:
    ``mean - std phi(z) / Phi(-z)`` with ``z = mean / std``. As in the authors' code, ``-3 std`` where less than 0.1% of
    the responses are negative.

    Args:
        mean: any shape.
        std: same shape, >= 0.

    Returns:
        Same shape, negative; ``min(mean, 0)`` where ``std`` is 0.

    Example:
        >>> gaussian_margin(torch.tensor([0.0, 9.0]), torch.tensor([1.0, 1.0]))
        tensor([-0.7979, -3.0000])
    """
    mean, std = upcast(mean), upcast(std)
    z = mean / std.clamp_min(torch.finfo(std.dtype).tiny)
    log_negative = torch.special.log_ndtr(-z)
    ratio = (-z.square() / 2 - math.log(math.sqrt(2 * math.pi)) - log_negative).exp()
    margin = torch.where(log_negative > math.log(0.001), mean - std * ratio, -3 * std)
    return torch.where(std > 0, margin, mean.clamp_max(0))


def partial_distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Partial squared distance to the teacher's response after a margin ReLU, summed over a sample's elements.

    Heo et al. (ICCV 2019): with the target ``t' = max(t, margin)`` an element costs ``(s - t')^2``, and
    nothing where ``s <= t' <= 0``, for there the activation of both is the same. Averaged over samples.

    Args:
        student: (B, C, *space) before the activation, projected to the teacher's width.
        teacher: same shape, before the activation.
        margin: (C,) of :func:`gaussian_margin`, <= 0.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> partial_distance(torch.tensor([[-2.0, 1.0]]), torch.tensor([[-5.0, 3.0]]), torch.tensor([-1.0, -1.0]))
        tensor(4.)
    """
    check_same_shape(student, teacher, "partial_distance")
    if margin.shape != student.shape[1:2]:
        raise KDBenchError(f"partial_distance: found margin {tuple(margin.shape)}, expected one a channel")
    student, margin = upcast(student), upcast(margin).reshape(-1, *[1] * (student.dim() - 2))
    target = torch.maximum(upcast(teacher), margin)
    counts = (student > target) | (target > 0)
    return ((student - target).square() * counts).sum() / max(student.shape[0], 1)
