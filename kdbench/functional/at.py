"""Attention transfer between grids of features."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, safe_mean, unit, upcast
from kdbench.functional.pool import pool_to_smaller


def attention_map(feature: Tensor, power: float = 2.0) -> Tensor:
    """Spatial attention ``Q = sum_c |F_c|^power``, flattened and scaled to unit l2 norm per sample.

    Zagoruyko & Komodakis (ICLR 2017), section 3.1. A sample without any activation has the map zero.

    Args:
        feature: (B, C, *space).
        power: exponent >= 1.

    Returns:
        (B, positions), float32 for low-precision input.

    Example:
        >>> attention_map(torch.tensor([[[3.0, 0.0], [0.0, 2.0]]]), power=1.0)
        tensor([[0.8321, 0.5547]])
    """
    feature = upcast(feature)
    powered = feature.square() if power == 2 else feature.abs().pow(power)
    return unit(powered.sum(dim=1).flatten(1))


def attention_transfer_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    power: float = 2.0,
    norm: float = 2.0,
    faithful: Faithful = "code",
) -> Tensor:
    """Distance between the normalised attention maps of two grids, whose channel counts may differ.

    Zagoruyko & Komodakis, Paying More Attention to Attention (ICLR 2017). With ``q = Q / ||Q||_2``:

    * ``paper`` (eq. 2): ``mean_b ||q_s - q_t||_norm``; the factor beta / 2 belongs to the term's weight.
    * ``code`` (the authors' and the usual reimplementations): ``mean_{b, position} (q_s - q_t)^2``, that is, the
      squared distance divided by the number of positions. Weights are not interchangeable between the two.

    Where the spatial sizes differ, both features are average-pooled to the smaller size along each axis.

    Args:
        student: (B, C_s, *space_s), one to three spatial axes.
        teacher: (B, C_t, *space_t).
        power: exponent of the attention map, >= 1 (``p`` in F_sum^p).
        norm: order of the norm of ``paper``; the paper uses 2.
        faithful: ``"paper"`` or ``"code"``.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: batch sizes or numbers of axes differ, or an option is unknown.

    Example:
        >>> student, teacher = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> attention_transfer_loss(student, teacher), attention_transfer_loss(student, teacher, faithful="paper")
        (tensor(1.), tensor(1.4142))
    """
    check_faithful(faithful)
    student, teacher = pool_to_smaller(student, teacher, "attention_transfer_loss")
    difference = attention_map(student, power) - attention_map(teacher, power)
    if faithful == "paper":
        return safe_mean(torch.linalg.vector_norm(difference, ord=norm, dim=1))
    return safe_mean(difference.square())
