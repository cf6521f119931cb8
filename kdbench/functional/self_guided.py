"""Self-distillation with ground truth: the deep loss, and its theory in closed form for kernel ridge regression."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.functional.divergence import check_same_shape, upcast, weighted_mean


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


def ridge_fit(kernel: Tensor, targets: Tensor, penalty: float, cross: Tensor | None = None) -> Tensor:
    """Kernel ridge regression: ``k(x) (K + penalty I)^-1 targets``.

    Args:
        kernel: K (N, N) of the training points.
        targets: (N,) or (N, D).
        penalty: lambda > 0.
        cross: k(x) (M, N) between the points to predict at and the training points; the training points by default.

    Returns:
        (M,) or (M, D).
    """
    weights = torch.linalg.solve(kernel + penalty * torch.eye(len(kernel)).to(kernel), targets)
    return (kernel if cross is None else cross) @ weights


def distilled_fits(
    kernel: Tensor, targets: Tensor, penalty: float, alphas: Sequence[float], cross: Tensor | None = None
) -> Tensor:
    """Self-distillation of kernel ridge regression, step by step.

    Borup & Andersen (NeurIPS 2021), section 3: the first fit is to ``y``, the t-th one after it to
    ``alpha_t y + (1 - alpha_t) f_{t-1}(X)``, all under one penalty.

    Args:
        kernel: K (N, N).
        targets: y (N,) or (N, D).
        penalty: lambda > 0.
        alphas: weight of the ground truth at each step after the first fit.
        cross: as in :func:`ridge_fit`.

    Returns:
        (1 + len(alphas), M) or (1 + len(alphas), M, D), the first fit first.
    """
    used = [targets]
    for alpha in alphas:
        used.append(alpha * targets + (1 - alpha) * ridge_fit(kernel, used[-1], penalty))
    return torch.stack([ridge_fit(kernel, y, penalty, cross) for y in used])


def distillation_filter(kernel: Tensor, penalty: float, alpha: float, steps: int) -> Tensor:
    """What ``steps`` fits with one ``alpha`` make of the targets, as a matrix: ``f(X) = B y``.

    Solves ``B_t = A ((1 - alpha) B_{t-1} + alpha I)``, ``A = K (K + penalty I)^-1``, ``B_0 = I``, in the eigenbasis of
    K, where every direction is a geometric series (Borup & Andersen, section 3): with ``a`` an eigenvalue of A and
    ``q = (1 - alpha) a``, the factor is ``q^t + alpha a (1 - q^t) / (1 - q)``.

    Args:
        kernel: K (N, N), symmetric.
        penalty: lambda > 0.
        alpha: weight of the ground truth, in [0, 1].
        steps: number of fits, the first one included.

    Returns:
        (N, N).
    """
    values, basis = torch.linalg.eigh(kernel)
    a = values / (values + penalty)
    q = (1 - alpha) * a
    return basis * (q**steps + alpha * a * (1 - q**steps) / (1 - q)) @ basis.T


def distilled_limit(
    kernel: Tensor, targets: Tensor, penalty: float, alpha: float, cross: Tensor | None = None
) -> Tensor:
    """Where endless self-distillation ends: ridge regression with the penalty ``penalty / alpha``.

    Borup & Andersen (NeurIPS 2021): ``alpha k(x) (alpha K + penalty I)^-1 y``; the zero function without ground truth.

    Args:
        kernel: K (N, N).
        targets: y (N,) or (N, D).
        penalty: lambda > 0.
        alpha: weight of the ground truth, in [0, 1].
        cross: as in :func:`ridge_fit`.

    Returns:
        (M,) or (M, D).
    """
    return alpha * ridge_fit(alpha * kernel, targets, penalty, kernel if cross is None else cross)


def optimal_alpha(from_truth: Tensor, from_teacher: Tensor, targets: Tensor) -> Tensor:
    """The weight of the ground truth for the next step that fits held-out targets best.

    A fit is linear in its targets, so the next one predicts ``alpha u + (1 - alpha) v``, and least squares gives
    ``alpha = <u - v, y - v> / ||u - v||^2`` (Borup & Andersen, section 4), clipped to [0, 1].

    Args:
        from_truth: u, held-out predictions of the fit to the ground truth alone.
        from_teacher: v, those of the fit to the previous fit alone.
        targets: y, held-out ground truth; all three of one shape.

    Returns:
        A scalar; 1 where both fits agree.

    Example:
        >>> optimal_alpha(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([0.2, 0.6]))
        tensor(0.4000)
    """
    check_same_shape(from_truth, from_teacher, "optimal_alpha")
    check_same_shape(from_truth, targets, "optimal_alpha")
    difference = from_truth - from_teacher
    size = difference.square().sum()
    best = (difference * (targets - from_teacher)).sum() / size
    return torch.where(size > 0, best.clamp(0, 1), torch.ones_like(best))
