"""Class attention transfer: where a network sees each class."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import check_same_shape, full_precision, safe_mean, unit, upcast
from kdbench.functional.pool import average_pool


def class_activation_maps(feature: Tensor, weight: Tensor, resolution: int) -> Tensor:
    """Class activation maps averaged over ``resolution`` bins an axis: ``A_k = pool(sum_c w_kc F_c)``.

    The bias of the classifier has no part in them. As both steps are linear, the grid is pooled before it is weighted.

    Args:
        feature: (B, C, *space), the last grid before global average pooling, one to three spatial axes.
        weight: (K, C) of the classifier; the kernel (K, C, 1, …) of one written as a convolution serves too.
        resolution: bins along each axis, positive.

    Returns:
        (B, K, *bins), float32 for low-precision input.

    Raises:
        KDBenchError: the classifier does not read the channels of the grid.

    Example:
        >>> class_activation_maps(torch.tensor([[[1.0, 3.0], [0.0, 4.0]]]), torch.tensor([[1.0, 2.0]]), 2)
        tensor([[[ 1., 11.]]])
    """
    weight = weight.flatten(1)
    if weight.shape[1] != feature.shape[1]:
        raise KDBenchError(
            f"class_activation_maps: the classifier reads {weight.shape[1]} channels and the grid has "
            f"{feature.shape[1]}, expected the grid right before global average pooling: set method.bind.feature"
        )
    pooled = upcast(average_pool(feature, (resolution,) * (feature.ndim - 2)))
    with full_precision(pooled):
        return torch.einsum("bc...,kc->bk...", pooled, weight.to(pooled.dtype))


def class_attention_loss(student: Tensor, teacher: Tensor, *, normalize: bool = True) -> Tensor:
    """Mean squared difference between class activation maps, each scaled to unit l2 norm over its cells.

    Guo et al., Class Attention Transfer Based Knowledge Distillation (CVPR 2023), as the mean over all elements that
    the released code takes; the paper's mean over classes of squared distances is this times the number of cells.

    Args:
        student: maps (B, K, *bins).
        teacher: maps of the same shape.
        normalize: False compares the maps as they are, as the released code does for pairs of one family.

    Returns:
        A scalar, float32 for low-precision input; zero for an empty batch.

    Example:
        >>> maps = torch.tensor([[[3.0, 4.0]]])
        >>> class_attention_loss(5 * maps, maps), class_attention_loss(maps, torch.zeros(1, 1, 2), normalize=False)
        (tensor(0.), tensor(12.5000))
    """
    check_same_shape(student, teacher, "class_attention_loss")
    student, teacher = upcast(student), upcast(teacher)
    if normalize:
        student, teacher = (unit(maps.flatten(2), dim=2) for maps in (student, teacher))
    return safe_mean((student - teacher).square())
