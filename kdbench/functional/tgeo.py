"""Distillation and supervision fused by a ratio per sample (TGeo-KD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import full_precision, upcast, weighted_mean


def class_sums(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sums probabilities (N, C) by true class.

    Returns:
        Sums (C, C), one row a true class, and the number of rows (C,) of each.

    Example:
        >>> class_sums(torch.tensor([[0.7, 0.3], [0.9, 0.1]]), torch.tensor([0, 0]))
        (tensor([[1.6000, 0.4000],
                [0.0000, 0.0000]]), tensor([2., 0.]))
    """
    hot = F.one_hot(labels, probabilities.shape[1]).to(probabilities)
    with full_precision(hot):
        return hot.T @ probabilities, hot.sum(dim=0)


def trilateral_state(student: Tensor, teacher: Tensor, mean: Tensor, labels: Tensor) -> Tensor:
    """What the ratio of a sample depends on: student, teacher, truth and class mean, and the sides between them.

    Hu et al., Less or More From Teacher (ICLR 2024), in the layout of the authors' code: ``[p_s, p_t, y, m]`` and the
    element-wise squares of ``m - p_s, y - p_s, p_t - p_s, p_t - y, m - p_t``.

    Args:
        student: probabilities (N, C).
        teacher: probabilities (N, C).
        mean: the teacher's mean prediction of each row's true class (N, C).
        labels: true classes (N,).

    Returns:
        (N, 9 C).
    """
    hot = F.one_hot(labels, student.shape[1]).to(student)
    sides = (mean - student, hot - student, teacher - student, teacher - hot, mean - teacher)
    return torch.cat([student, teacher, hot, mean, *(side.square() for side in sides)], dim=1)


def fused_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    ratio: Tensor | float,
    temperature: float = 1.5,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """``mean_n [a_n T^2 KL(p_t || p_s) + (1 - a_n) CE(p_s, y_n)]``, the inner loss of Hu et al. (ICLR 2024).

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        labels: true classes (N,).
        ratio: a, of each row (N,) or one number; its gradient is kept.
        temperature: T > 0.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> fused_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), torch.tensor([0]), 0.5, temperature=1.0)
        tensor(0.5105)
    """
    distilled = temperature**2 * categorical_kl(student, teacher, temperature)
    supervised = F.cross_entropy(upcast(student), labels, reduction="none")
    return weighted_mean(ratio * distilled + (1 - ratio) * supervised, weight)
