"""Distillation of relations: correlation of predictions over classes and over samples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, spread, upcast, weighted_mean


def pearson_correlation(a: Tensor, b: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson correlation of matching rows, ``<a', b'> / (||a'|| ||b'|| + eps)`` with centred rows a' and b'.

    That of a row which is constant up to rounding is zero, and so is its gradient.

    Args:
        a: (N, C), C >= 1.
        b: (N, C).
        eps: as in the authors' code.

    Returns:
        (N,), float32 for low-precision input.

    Example:
        >>> pearson_correlation(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[5.0, 3.0, 2.0]]))
        tensor([-0.9820])
    """
    (a, norm_a, varies_a), (b, norm_b, varies_b) = spread(upcast(a)), spread(upcast(b))
    vary = (varies_a & varies_b).squeeze(1)
    norms = torch.where(vary, (norm_a * norm_b).squeeze(1), 1.0)
    return torch.where(vary, (a * b).sum(dim=1) / (norms + eps), 0.0)


def inter_class_loss(
    student: Tensor, teacher: Tensor, temperature: float | Tensor = 4.0, *, weight: Tensor | None = None
) -> Tensor:
    """Relations between the classes of each row, ``T^2 * mean_n (1 - pearson(p_s,n, p_t,n))``.

    Huang, You, Wang, Qian & Xu, Knowledge Distillation from A Stronger Teacher (NeurIPS 2022), inter-class term, with
    ``p = softmax(z / T)``; the factor T^2 is that of the authors' code.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0, a number or a scalar tensor.
        weight: non-negative row weights (N,), normalised by their sum.

    Returns:
        A scalar in [0, 2 T^2], float32 for low-precision input; zero for no rows.

    Example:
        >>> inter_class_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), 1.0)
        tensor(2.)
    """
    check_same_shape(student, teacher, "inter_class_loss")
    p_s, p_t = (F.softmax(upcast(logits) / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * weighted_mean(1 - pearson_correlation(p_s, p_t), weight)


def intra_class_loss(student: Tensor, teacher: Tensor, temperature: float | Tensor = 4.0) -> Tensor:
    """Relations between the rows under each class, ``T^2 * mean_c (1 - pearson(p_s,:c, p_t,:c))``.

    Huang et al. (NeurIPS 2022), intra-class term. One row has no relations: the loss is T^2 and carries no gradient.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0, a number or a scalar tensor.

    Returns:
        A scalar in [0, 2 T^2], float32 for low-precision input; zero for no rows.

    Example:
        >>> intra_class_loss(torch.eye(2), 3 * torch.eye(2), 1.0)
        tensor(0.)
    """
    check_same_shape(student, teacher, "intra_class_loss")
    p_s, p_t = (F.softmax(upcast(logits) / temperature, dim=1) for logits in (student, teacher))
    if not len(p_s):
        return p_s.sum()
    return temperature**2 * safe_mean(1 - pearson_correlation(p_s.T, p_t.T))
