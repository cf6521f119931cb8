"""Weighted soft labels: rows on which the student is far behind its teacher count more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def soft_label_weight(student: Tensor, teacher: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """Weight of each row, ``1 - exp(-CE_s / (CE_t + eps))`` with the cross-entropy CE to the true class at T = 1.

    Zhou et al., Rethinking Soft Labels for Knowledge Distillation (ICLR 2021). A weight carries no gradient.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        target: true classes (N,).
        eps: keeps the ratio finite under a certain teacher (authors' code).

    Returns:
        (N,) in [0, 1], float32 for low-precision input.

    Example:
        >>> soft_label_weight(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor([0.6321])
    """
    ce_s, ce_t = (F.cross_entropy(upcast(z), target, reduction="none") for z in (student.detach(), teacher.detach()))
    return -torch.expm1(-ce_s / (ce_t + eps))


def wsld_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Weighted soft labels, ``-T^2 * mean_n w_n sum_c p_t,c log p_s,c`` with ``p = softmax(z / T)``.

    Zhou et al. (ICLR 2021); w of :func:`soft_label_weight`. The least value is not zero but the weighted entropy of
    the teacher.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        target: true classes (N,).
        temperature: T > 0, a number or a scalar tensor.
        weight: further non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> wsld_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 2.0)
        tensor(1.7526)
    """
    check_same_shape(student, teacher, "wsld_loss")
    log_s = F.log_softmax(upcast(student) / temperature, dim=1)
    p_t = F.softmax(upcast(teacher) / temperature, dim=1)
    rows = -soft_label_weight(student, teacher, target) * (p_t * log_s).sum(dim=1)
    return temperature**2 * weighted_mean(rows, weight)
