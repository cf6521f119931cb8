"""Softmax regression representation learning: the teacher's classifier judges the student's feature."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast
from kdbench.functional.pool import global_average


def srrl_losses(student: Tensor, teacher: Tensor, classifier: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Feature matching and softmax regression losses of Yang et al. (ICLR 2021), both as means over all elements.

    ``L_FM = mean((g(f_s) - f_t)^2)`` and ``L_SR = mean((h(g(f_s)) - h(f_t))^2)`` with the teacher's classifier h.
    Grids are averaged over their cells first.

    Args:
        student: connected feature g(f_s), (B, D) or (B, D, *space).
        teacher: penultimate feature f_t, (B, D) or (B, D, *space).
        classifier: h, from (B, D) to logits (B, C).

    Returns:
        L_FM and L_SR: scalars, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> srrl_losses(torch.ones(2, 3), torch.zeros(2, 3), lambda f: 2 * f[:, :2])
        (tensor(1.), tensor(4.))
    """
    student, teacher = global_average(student), global_average(teacher)
    check_same_shape(student, teacher, "srrl_losses")
    matching = safe_mean((upcast(student) - upcast(teacher)).square())
    regression = safe_mean((upcast(classifier(student)) - upcast(classifier(teacher))).square())
    return matching, regression
