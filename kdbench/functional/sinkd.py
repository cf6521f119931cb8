"""Sinkhorn distance between a batch of student and of teacher distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import check_same_shape, upcast


def transport_cost(student: Tensor, teacher: Tensor, eps: float = 0.1, iterations: int = 20) -> Tensor:
    """Entropic transport cost ``sum_ij P_ij W_ij`` between two clouds of distributions.

    ``W_ij = ||p_i - q_j||_1``, ``K = exp(-W / eps)``; P is K after ``iterations`` alternations of a normalisation of
    its rows and then of its columns, so that all of P sums to the number of rows. In the log domain, which gives the
    same P and does not underflow for a small ``eps``. The gradient passes through the alternations.

    Args:
        student: probabilities p (N, C).
        teacher: probabilities q (N, C).
        eps: strength of the entropic regularisation, > 0.
        iterations: alternations.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> transport_cost(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
        tensor(1.)
    """
    check_same_shape(student, teacher, "transport_cost")
    distance = torch.cdist(upcast(student), upcast(teacher), p=1)
    log_plan = -distance / eps
    for _ in range(iterations):
        log_plan = log_plan.log_softmax(dim=1).log_softmax(dim=0)
    return (log_plan.exp() * distance).sum()


def sinkhorn_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 2.0,
    *,
    eps: float = 0.1,
    iterations: int = 20,
    debiased: bool = False,
) -> Tensor:
    """Sinkhorn distance between the batch's softened predictions.

    Cui et al., Sinkhorn Distance Minimization for Knowledge Distillation (COLING 2024): :func:`transport_cost` of
    ``softmax(z / T)``, a sum over the batch. Its minimum is not where student and teacher agree: entropic transport
    rewards a student whose distributions lie closer together than the teacher's. ``debiased`` takes half of both self
    costs away, ``S(p, q) - S(p, p) / 2 - S(q, q) / 2`` (Feydy et al., AISTATS 2019), which is zero at agreement.

    Args:
        student: logits (N, C).
        teacher: logits (N, C).
        temperature: T > 0.
        eps: strength of the entropic regularisation, > 0.
        iterations: alternations of the normalisations.
        debiased: whether to take the self costs away; three times the work.

    Returns:
        A scalar, float32 for low-precision input; zero for no rows.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.5]])
        >>> sinkhorn_loss(logits, logits), sinkhorn_loss(logits, logits, debiased=True)
        (tensor(0.0033), tensor(0.))
    """
    check_same_shape(student, teacher, "sinkhorn_loss")
    p, q = ((upcast(logits) / temperature).softmax(dim=1) for logits in (student, teacher))
    cost = transport_cost(p, q, eps, iterations)
    if debiased:
        cost = cost - (transport_cost(p, p, eps, iterations) + transport_cost(q, q, eps, iterations)) / 2
    return cost
