"""Distillation in logit space with an enhanced target class (OFA-KD)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast, weighted_mean


def ofa_loss(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    gamma: float = 1.0,
    *,
    temperature: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy whose soft target raises the true class where the teacher is sure of it.

    Hao et al., One-for-All (NeurIPS 2023), as the authors' code computes it, with ``y`` the one-hot label:
    ``l = -sum_c [(p_t,c + y_c)^gamma - y_c] log p_s,c``. At ``gamma = 1`` it is the cross-entropy with the teacher's
    prediction. A larger one gives the true class more weight, the more so the surer the teacher is of it, and the
    other classes less.

    Args:
        student: logits (N, C), of the student's head or of an exit branch.
        teacher: logits (N, C).
        target: true classes (N,), integers.
        gamma: exponent > 0.
        temperature: T > 0 of both softmaxes; not multiplied back.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2)
        >>> ofa_loss(logits, logits, torch.tensor([0])), ofa_loss(logits, logits, torch.tensor([0]), gamma=2.0)
        (tensor(0.6931), tensor(1.0397))
    """
    check_same_shape(student, teacher, "ofa_loss")
    log_s = F.log_softmax(upcast(student) / temperature, dim=1)
    p_t = F.softmax(upcast(teacher) / temperature, dim=1)
    one_hot = F.one_hot(target, student.shape[1]).to(p_t.dtype)
    return weighted_mean(-(((p_t + one_hot) ** gamma - one_hot) * log_s).sum(dim=1), weight)
