"""Patience: hidden states compared by their direction."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, unit, upcast, weighted_mean


def patience_loss(
    student: Tensor, teacher: Tensor, *, faithful: Faithful = "paper", weight: Tensor | None = None
) -> Tensor:
    """Squared distance of hidden states of unit length, ``mean_n || s / ||s|| - t / ||t|| ||^2``.

    Sun, Cheng, Gan & Liu, Patient Knowledge Distillation for BERT Model Compression (EMNLP 2019), of one layer.

    Args:
        student: hidden states (N, D).
        teacher: hidden states (N, D).
        faithful: ``"paper"``; ``"code"`` divides by D, as the authors' mean over all elements does.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> import torch
        >>> patience_loss(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]]))
        tensor(2.)
    """
    check_faithful(faithful)
    check_same_shape(student, teacher, "patience_loss")
    squared = (unit(upcast(student)) - unit(upcast(teacher))).square()
    return weighted_mean(squared.sum(1) if faithful == "paper" else squared.mean(1), weight)
