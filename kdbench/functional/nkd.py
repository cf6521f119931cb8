"""Normalised knowledge distillation: soft cross-entropy of the true class and of the renormalised others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.categorical import non_target
from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def nkd_target_loss(student: Tensor, teacher: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Soft cross-entropy of the true class, ``-mean_n p_t,y log p_s,y``, without a temperature.

    Yang et al., From Knowledge Distillation to Self-Knowledge Distillation (ICCV 2023), first term of the NKD loss.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        target: true classes (N,).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> nkd_target_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.3466)
    """
    check_same_shape(student, teacher, "nkd_target_loss")
    log_s, p_t = F.log_softmax(upcast(student), dim=1), F.softmax(upcast(teacher), dim=1)
    column = target[:, None]
    return weighted_mean(-(p_t.gather(1, column) * log_s.gather(1, column)).squeeze(1), weight)


def nkd_non_target_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    weight: Tensor | None = None,
) -> Tensor:
    """Soft cross-entropy of the other classes, ``-T^2 * mean_n sum_{c != y} q_t,c log q_s,c``.

    Yang et al. (ICCV 2023), second term of the NKD loss without its factor gamma; ``q = softmax(z / T)`` over the
    classes but the true one, so that both sides sum to one. The least value is ``T^2`` times the entropy of q_t.

    Args:
        student: logits (N, C), C >= 2.
        teacher: logits (N, C).
        target: true classes (N,).
        temperature: T > 0, a number or a scalar tensor.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar >= 0, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> nkd_non_target_loss(torch.zeros(1, 3), torch.tensor([[9.0, 4.0, 0.0]]), torch.tensor([0]))
        tensor(0.6931)
    """
    check_same_shape(student, teacher, "nkd_non_target_loss")
    log_s = F.log_softmax(upcast(non_target(student, target)) / temperature, dim=1)
    q_t = F.softmax(upcast(non_target(teacher, target)) / temperature, dim=1)
    return temperature**2 * weighted_mean(-(q_t * log_s).sum(dim=1), weight)
