"""Hints from intermediate features (FitNets)."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import check_same_shape, safe_mean, upcast


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between the projected student feature and the teacher feature.

    Romero et al., FitNets: Hints for Thin Deep Nets (ICLR 2015), eq. 3, ``1/2 ||u_h(x) - r(v_g(x))||^2``. As in the
    widely used one-stage code the half is left out and the sum becomes a mean over all elements, so that the weight
    does not depend on the feature's size.

    Args:
        student: projected feature, any shape.
        teacher: feature of the same shape.

    Returns:
        A scalar, float32 for low-precision input; zero for empty features.

    Example:
        >>> import torch
        >>> hint_loss(torch.zeros(2, 3), torch.full((2, 3), 2.0))
        tensor(4.)
    """
    check_same_shape(student, teacher, "hint_loss")
    return safe_mean((upcast(student) - upcast(teacher)).square())
