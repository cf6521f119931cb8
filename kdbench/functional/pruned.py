"""Distillation of a student that sees a pruned training set."""

from __future__ import annotations

from torch import Tensor

from kdbench.features import Law
from kdbench.functional.kd import kd_loss


def distillation_weight(fraction: float) -> float:
    """Weight of the distillation term where the student sees a share of the training set, ``1 - fraction / 2``.

    Ben-Baruch et al., Distilling the Knowledge in Data Pruning (ICML 2025), find that the best weight rises as the
    share falls; their curve could not be read. This line is ours: half for all the data, all of it for none.

    Args:
        fraction: kept share of the training set, in (0, 1].

    Example:
        >>> distillation_weight(1.0), distillation_weight(0.25)
        (0.5, 0.875)
    """
    return 1 - fraction / 2


def pruned_loss(
    supervised: Tensor,
    student: Tensor,
    teacher: Tensor,
    alpha: float,
    temperature: float = 4.0,
    *,
    law: Law = "categorical",
    weight: Tensor | None = None,
) -> Tensor:
    """Mixture ``(1 - alpha) L_supervised + alpha T^2 KL(p_t || p_s)`` of Ben-Baruch et al. (ICML 2025).

    Args:
        supervised: scalar supervised loss of the student on the kept samples.
        student: logits (N, C).
        teacher: logits (N, C) of a teacher that was trained on all samples.
        alpha: weight of the distillation term, in [0, 1].
        temperature: T > 0.
        law: ``"categorical"`` or ``"bernoulli"``.
        weight: non-negative row weights (N,).

    Returns:
        A scalar, float32 for low-precision input.

    Example:
        >>> import torch
        >>> pruned_loss(torch.tensor(2.0), torch.zeros(1, 2), torch.tensor([[8.0, 0.0]]), alpha=0.5)
        tensor(3.6225)
    """
    return (1 - alpha) * supervised + alpha * kd_loss(student, teacher, temperature, law=law, weight=weight)
