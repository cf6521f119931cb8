"""Distillation of singular vectors: the main directions of a layer's features, and how they relate across layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, upcast


def right_singular_vectors(feature: Tensor, k: int, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """The k main directions in channel space of each sample, from the SVD of its positions x channels matrix.

    The sign, which an SVD leaves open, is such that the sum of a vector is not negative. The gradient is that of the
    vectors alone and finite whatever the singular values: between values whose squares differ by less than ``eps`` of
    the sum of all squares, where the vectors are not determined and the gradient of ``torch.linalg.svd`` has poles,
    it fades to zero.

    Args:
        feature: (B, C, *space).
        k: how many; fewer where C or the number of positions is less.
        eps: where the gradient starts to fade.

    Returns:
        Vectors (B, C, k) of unit norm (zero where the feature has a lower rank), and singular values (B, k) up to a
        factor for each sample, descending and without gradient.

    Example:
        >>> vectors, values = right_singular_vectors(torch.tensor([[[3.0, 0.0], [4.0, 0.0]]]), 1)
        >>> vectors[0, :, 0]
        tensor([0.6000, 0.8000])
    """
    x = upcast(feature).flatten(2).mT
    with full_precision(x):
        # Directions do not depend on the size of the feature: at norm 1 eps means the same for every one.
        x = x / torch.linalg.vector_norm(x.detach(), dim=(1, 2), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        with torch.no_grad():
            squares, basis = _eigen(x)
            k = min(k, squares.shape[1])
            main = basis[:, :, :k]
            flip = torch.where(main.sum(1, keepdim=True) < 0, -1, 1)
            main = main * flip
        # First-order change of the vectors with x^T x; its value is zero, and so it only carries the gradient.
        moved = x.mT @ (x @ main)
        within = basis.mT @ moved
        gap = squares[:, None, :k] - squares[:, :, None]
        rest = (moved - basis @ within) * _reciprocal(squares[:, None, :k], eps)
        change = basis @ (within * _reciprocal(gap, eps)) + rest
    return main + change - change.detach(), squares[:, :k].sqrt()


def _reciprocal(x: Tensor, eps: float) -> Tensor:
    """``1 / x`` that fades to zero below ``eps``."""
    return x / (x.square() + eps**2)


def _eigen(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, descending, and right singular vectors of x (B, positions, C)."""
    if x.shape[1] >= x.shape[2]:
        squares, basis = torch.linalg.eigh(x.mT @ x)
    else:
        squares, left = torch.linalg.eigh(x @ x.mT)
        # Of x^T u the part of a null vector is rounding alone.
        known = squares > 10 * x.shape[2] * torch.finfo(x.dtype).eps
        basis = F.normalize(x.mT @ left, dim=1, eps=torch.finfo(x.dtype).tiny) * known[:, None]
    return squares.flip(1).clamp_min(0), basis.flip(2)


def align(student: Tensor, teacher: Tensor) -> Tensor:
    """Picks for each vector of the teacher the student's most similar one, by the cosine and with the same sign.

    Args:
        student: (B, C, k_s) of unit norm.
        teacher: (B, C, k_t) of unit norm.

    Returns:
        (B, C, k_t).

    Example:
        >>> align(torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]), torch.tensor([[[1.0], [0.0]]]))[0, :, 0]
        tensor([1., -0.])
    """
    cosine = (student.mT @ teacher).detach()
    best = cosine.abs().argmax(1, keepdim=True)
    sign = torch.where(cosine.gather(1, best) < 0, -1, 1)
    return student.gather(2, best.expand(-1, student.shape[1], -1)) * sign


def kdsvd_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], k: int = 1, *, eps: float = 1e-3) -> Tensor:
    """Squared difference of how the singular vectors of consecutive layers relate, in student and teacher.

    Lee, Kim & Song, Self-supervised Knowledge Distillation using Singular Value Decomposition (ECCV 2018): the
    teacher's k main vectors of each layer and the student's most similar ones (of its k + 3 main ones), both weighted
    by the teacher's singular values scaled to unit norm, give for every channel of a layer and every one of the layer
    before ``exp(-(v - v')^2 / 8)``. The squares are summed over channels, vectors and pairs of layers and averaged over
    samples.

    Args:
        student: at least two layers (B, C_l, *space), shallow to deep.
        teacher: as many layers (B, C_l, *space_t) of the same widths.
        k: vectors of a layer.
        eps: of :func:`right_singular_vectors`.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: fewer than two layers, or numbers of layers, batch sizes or widths differ.

    Example:
        >>> layers = [torch.eye(3)[None], torch.ones(1, 2, 5)]
        >>> kdsvd_loss(layers, layers)
        tensor(0.)
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise KDBenchError(
            f"kdsvd_loss: found {len(student)} layers of the student and {len(teacher)} of the teacher, "
            "expected as many of both and at least two"
        )
    losses, before = [], None
    for level, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if s.shape[:2] != t.shape[:2]:
            raise KDBenchError(
                f"kdsvd_loss: layer {level} has shape {tuple(s.shape)} in the student and {tuple(t.shape)} in the "
                "teacher, expected one batch size and width; project the student's"
            )
        main, values = right_singular_vectors(t, k, eps)
        weight = F.normalize(values, dim=1)[:, None]
        now = [align(right_singular_vectors(s, k + 3, eps)[0], main) * weight, main * weight]
        if before is not None:
            ours, theirs = (_relation(v, u) for v, u in zip(now, before, strict=True))
            losses.append((ours - theirs).square().sum())
        before = now
    return sum(losses[1:], start=losses[0]) / max(student[0].shape[0], 1)


def _relation(now: Tensor, before: Tensor) -> Tensor:
    """Radial basis functions between channels of two layers, (B, C, C_before, min(k))."""
    k = min(now.shape[2], before.shape[2])
    return (-(now[:, :, None, :k] - before[:, None, :, :k]).square() / 8).exp()
