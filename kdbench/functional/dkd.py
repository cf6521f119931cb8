"""Decoupled knowledge distillation: the true class apart from the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.categorical import non_target
from kdbench.functional.divergence import categorical_kl
from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def tckd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Target-class distillation ``T^2 * mean_n KL(b_t || b_s)`` of the binary laws ``b = (p_y, 1 - p_y)``.

    Zhao, Cui, Song, Qiu & Liang, Decoupled Knowledge Distillation (CVPR 2022), eq. 5 and 7, ``p = softmax(z / T)``.

    Args:
        student: logits (N, C), C >= 2.
        teacher: logits (N, C).
        target: true classes (N,).
        temperature: T > 0, a number or a scalar tensor.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> tckd_loss(torch.zeros(1, 3), torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0]), 4.0)
        tensor(1.9726)
    """
    check_same_shape(student, teacher, "tckd_loss")
    laws = []
    for logits in (student, teacher):
        log_p = F.log_softmax(upcast(logits) / temperature, dim=1)
        # From the logarithms: 1 - p_y would be rounded to 0 for a confident row.
        rest = non_target(log_p, target).logsumexp(dim=1, keepdim=True)
        laws.append(torch.cat([log_p.gather(1, target[:, None]), rest], dim=1))
    return temperature**2 * weighted_mean(categorical_kl(*laws), weight)


def nckd_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Non-target-class distillation ``T^2 * mean_n KL(q_t || q_s)``, q the softmax over all classes but the true one.

    Zhao et al. (CVPR 2022), eq. 5 and 7. Row by row ``KD = TCKD + (1 - p_t,y) NCKD`` (their eq. 6).

    Args:
        student: logits (N, C), C >= 2.
        teacher: logits (N, C).
        target: true classes (N,).
        temperature: T > 0, a number or a scalar tensor.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows and for two classes.

    Example:
        >>> nckd_loss(torch.zeros(1, 3), torch.tensor([[9.0, 4.0, 0.0]]), torch.tensor([0]), 4.0)
        tensor(1.7751)
    """
    check_same_shape(student, teacher, "nckd_loss")
    rows = categorical_kl(non_target(student, target), non_target(teacher, target), temperature)
    return temperature**2 * weighted_mean(rows, weight)
