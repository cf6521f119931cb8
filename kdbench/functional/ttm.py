"""Transformed teacher matching: the student, without a temperature, matches a power of the teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def ttm_loss(
    student: Tensor,
    teacher: Tensor,
    exponent: float = 0.1,
    *,
    weighted: bool = False,
    weight: Tensor | None = None,
) -> Tensor:
    """KL to the power-transformed teacher, ``mean_n KL(p_t^g / U || p_s)`` with ``U = sum_c p_t,c^g``.

    Zheng & Yang, Knowledge Distillation Based on Transformed Teacher Matching (ICLR 2024). A power g of a softmax is
    a temperature T = 1/g on the teacher alone, hence per row ``TTM = T * KD_T - (T - 1) * H_g(p_s) + constant`` with
    the Renyi entropy ``H_g(p) = log(sum_c p_c^g) / (1 - g)`` of the student and ``KD_T`` the KL at T.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        exponent: g > 0; below 1 it smooths the teacher.
        weighted: multiplies each row by its power sum U (WTTM), which for g < 1 is larger for a smoother teacher.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2), torch.tensor([[4.0, 0.0]])
        >>> ttm_loss(student, teacher, 0.5), ttm_loss(student, teacher, 0.5, weighted=True)
        (tensor(0.3278), tensor(0.3688))
    """
    check_same_shape(student, teacher, "ttm_loss")
    log_s = F.log_softmax(upcast(student), dim=1)
    power = exponent * F.log_softmax(upcast(teacher), dim=1)
    log_sum = power.logsumexp(dim=1)
    log_t = power - log_sum[:, None]
    rows = (log_t.exp() * (log_t - log_s)).sum(dim=1)
    return weighted_mean(log_sum.exp() * rows if weighted else rows, weight)
