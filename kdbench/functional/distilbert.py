"""Hidden states compared by their angle."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, unit, upcast, weighted_mean


def hidden_cosine_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """``mean_n (1 - cos(s, t))``; what is zero has no angle, and the loss 1.

    Sanh, Debut, Chaumond & Wolf, DistilBERT (2019), section 2.

    Args:
        student: hidden states (N, D).
        teacher: hidden states (N, D).
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> hidden_cosine_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        tensor(1.)
    """
    check_same_shape(student, teacher, "hidden_cosine_loss")
    return weighted_mean(1 - (unit(upcast(student)) * unit(upcast(teacher))).sum(1), weight)
