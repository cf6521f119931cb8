"""Factor transfer: the teacher's feature, paraphrased into factors that the student can follow."""

from __future__ import annotations

from torch import Tensor

from kdbench.functional.numerics import Faithful, check_faithful, check_same_shape, safe_mean, unit, upcast
from kdbench.functional.pool import pool_to_smaller


def factor_loss(student: Tensor, teacher: Tensor, *, p: float = 1.0, faithful: Faithful = "code") -> Tensor:
    """Mean ``|n(F_s) - n(F_t)|^p`` between the factors of the student's translator and of the teacher's paraphraser.

    Kim et al., Paraphrasing Complex Network (NeurIPS 2018). ``n`` scales to unit l2 norm per sample:

    * ``paper``: the whole factor (the authors' code takes the mean, too, with weight 500 and p = 1).
    * ``code`` (RepDistiller and the tables made with it): the energy ``mean_c F_c^2`` of each position.

    Where the spatial sizes differ, both factors are average-pooled to the smaller size along each axis.

    Args:
        student: (B, C, *space_s), one to three spatial axes.
        teacher: (B, C, *space_t).
        p: exponent >= 1.
        faithful: ``"paper"`` or ``"code"``.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[1.0, 0.0]]])
        >>> factor_loss(student, teacher, faithful="paper"), factor_loss(student, teacher)
        (tensor(0.6000), tensor(0.6907))
    """
    check_faithful(faithful)
    student, teacher = pool_to_smaller(student, teacher, "factor_loss")
    check_same_shape(student, teacher, "factor_loss")
    if faithful == "code":
        student, teacher = (upcast(f).square().mean(1) for f in (student, teacher))
    factors = (unit(upcast(f).flatten(1)) for f in (student, teacher))
    difference = next(factors) - next(factors)
    return safe_mean(difference.abs().pow(p) if p != 1 else difference.abs())
