"""Self-distillation with ground truth."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def self_guided_loss(
    student: Tensor, labels: Tensor, teacher: Tensor | None = None, alpha: float = 0.6, *, weight: Tensor | None = None
) -> Tensor:
    """Squared distance of the student's probabilities to the labels and to those of the generation before.

    Borup & Andersen, Even your Teacher Needs Guidance (NeurIPS 2021), section 5:
    ``mean_n [alpha ||p_s - onehot(y)||^2 + (1 - alpha) ||p_s - p_t||^2]``; the first generation, which has no teacher,
    learns from the labels alone. The authors' code divides by the number of classes too.

    Args:
        student: logits (N, C).
        labels: true classes (N,).
        teacher: logits (N, C) of the generation before, or None for the first one.
        alpha: weight of the labels, in [0, 1].
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> student, labels = torch.zeros(1, 2), torch.tensor([0])
        >>> self_guided_loss(student, labels), self_guided_loss(student, labels, student, alpha=0.6)
        (tensor(0.5000), tensor(0.3000))
    """
    p = upcast(student).softmax(dim=1)
    truth = (p - F.one_hot(labels, student.shape[1])).square().sum(dim=1)
    if teacher is None:
        return weighted_mean(truth, weight)
    check_same_shape(student, teacher, "self_guided_loss")
    guide = (p - upcast(teacher).softmax(dim=1)).square().sum(dim=1)
    return weighted_mean(alpha * truth + (1 - alpha) * guide, weight)
