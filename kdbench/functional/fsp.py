"""Flow of the solution procedure: how features of one layer turn into those of another."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, upcast
from kdbench.functional.pool import pool_to_smaller


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Gram matrix between the channels of two layers, averaged over positions.

    Yim et al. (CVPR 2017), eq. 1: ``G_ij = sum_p F1_ip F2_jp / (h w)``.

    Args:
        first: (B, C_1, *space_1), one to three spatial axes.
        second: (B, C_2, *space_2); the larger map is average-pooled to the smaller.

    Returns:
        (B, C_1, C_2), float32 for low-precision input.

    Example:
        >>> import torch
        >>> fsp_matrix(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
        tensor([[[5.5000, 2.0000]]])
    """
    first, second = (upcast(x).flatten(2) for x in pool_to_smaller(first, second, "fsp_matrix"))
    with full_precision(first):
        return first @ second.mT / max(first.shape[2], 1)


def fsp_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the FSP matrices of consecutive layers, summed over the pairs of layers.

    Yim et al., A Gift from Knowledge Distillation (CVPR 2017), eq. 2 with equal lambdas. As in the widely used code
    the squared norm becomes a mean over the matrix, so that the weight does not depend on the widths.

    Args:
        student: at least two layers (B, C_l, *space), shallow to deep.
        teacher: as many layers (B, C_l, *space_t) of the same widths.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Raises:
        KDBenchError: fewer than two layers, or numbers of layers or widths differ.

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 2, 3, 3)
        >>> fsp_loss([ones, ones], [2 * ones, ones])
        tensor(1.)
    """
    if len(student) != len(teacher) or len(student) < 2:
        raise KDBenchError(
            f"fsp_loss: found {len(student)} layers of the student and {len(teacher)} of the teacher, "
            "expected as many of both and at least two"
        )
    losses = []
    for level in range(len(student) - 1):
        ours, theirs = fsp_matrix(*student[level : level + 2]), fsp_matrix(*teacher[level : level + 2])
        check_same_shape(ours, theirs, f"fsp_loss, layers {level} and {level + 1}")
        losses.append(safe_mean((ours - theirs).square()))
    return sum(losses[1:], start=losses[0])
