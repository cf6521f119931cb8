"""Neuron selectivity transfer: where the neurons of a layer fire, as a distribution."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import full_precision, safe_mean, unit, upcast
from kdbench.functional.pool import pool_to_smaller


def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the activation maps of two grids, whose channel counts may differ.

    Huang & Wang, Like What You Like (2017), with the polynomial kernel ``k(x, y) = (x . y)^2`` over channel maps
    of unit l2 norm: ``mean k(t, t) + mean k(s, s) - 2 mean k(s, t)``, averaged over samples. Where the spatial sizes
    differ, both grids are average-pooled to the smaller size along each axis.

    Args:
        student: (B, C_s, *space_s), one to three spatial axes.
        teacher: (B, C_t, *space_t).

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> nst_loss(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
        tensor(2.)
    """
    s, t = (unit(upcast(x).flatten(2), dim=2) for x in pool_to_smaller(student, teacher, "nst_loss"))
    with full_precision(s):
        within = safe_mean((t @ t.mT).square()) + safe_mean((s @ s.mT).square())
        return within - 2 * safe_mean((s @ t.mT).square())
