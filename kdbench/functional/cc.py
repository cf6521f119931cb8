"""Correlation congruence between the samples of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, unit, upcast


def neighbour_product_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Product of the differences of neighbouring samples, ``mean_i <d_i, d_{i+1}>`` with ``d = |e_s - e_t|``.

    The form that the authors of CC gave to RepDistiller and that all later tables run. It depends on the order of the
    batch; a batch of one has no neighbours and gives zero.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, D).

    Returns:
        A scalar, float32 for low-precision input; zero for fewer than two samples.

    Example:
        >>> neighbour_product_loss(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.zeros(2, 2))
        tensor(3.)
    """
    check_same_shape(student, teacher, "neighbour_product_loss")
    delta = (upcast(student) - upcast(teacher)).abs()
    return safe_mean((delta[:-1] * delta[1:]).sum(dim=1))


def correlation_matrix(embedding: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Gaussian kernel between the samples of a batch, as its Taylor series in the cosine similarity.

    ``exp(-gamma ||x - y||^2) = exp(-2 gamma) sum_p (2 gamma)^p / p! <x, y>^p`` for unit vectors, cut after ``order``.

    Args:
        embedding: (B, D), scaled to unit length here.
        gamma: width of the kernel, > 0.
        order: highest power, >= 1.

    Returns:
        (B, B), float32 for low-precision input.

    Example:
        >>> correlation_matrix(torch.eye(2), order=30)
        tensor([[1.0000, 0.4493],
                [0.4493, 1.0000]])
    """
    embedding = unit(upcast(embedding))
    with full_precision(embedding):
        cosine = embedding @ embedding.T
    series = torch.ones_like(cosine)
    for p in range(order, 0, -1):
        series = 1 + series * cosine * (2 * gamma / p)
    return math.exp(-2 * gamma) * series


def correlation_congruence_loss(student: Tensor, teacher: Tensor, *, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Squared distance between the correlation matrices, ``||C_s - C_t||^2 / B^2``.

    Peng et al., Correlation Congruence for Knowledge Distillation (ICCV 2019), with the Gaussian kernel of
    :func:`correlation_matrix`.

    Args:
        student: embeddings (B, D_s).
        teacher: embeddings (B, D_t).
        gamma: width of the kernel, > 0.
        order: highest power of its Taylor series, >= 1.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: the embeddings are not matrices of one batch size.

    Example:
        >>> correlation_congruence_loss(torch.eye(2), torch.ones(2, 3), order=1)
        tensor(0.0646)
    """
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
        raise KDBenchError(
            f"correlation_congruence_loss: the student has shape {tuple(student.shape)} and the teacher "
            f"{tuple(teacher.shape)}, expected (B, D) with one batch size"
        )
    difference = correlation_matrix(student, gamma, order) - correlation_matrix(teacher, gamma, order)
    return safe_mean(difference.square())
