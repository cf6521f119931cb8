"""Intra-class feature variation: how far each position is from the mean of its class."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdbench.errors import KDBenchError
from kdbench.functional.numerics import full_precision, unit, upcast, weighted_mean


def class_centres(feature: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean feature of each class in each sample.

    Args:
        feature: (B, C, *space).
        labels: class of each position (B, *space), -1 where it does not count.
        classes: K.

    Returns:
        (B, K, C), float32 for low-precision input; zero for a class that the sample has not.

    Example:
        >>> import torch
        >>> class_centres(torch.tensor([[[1.0, 3.0, 5.0]]]), torch.tensor([[0, 0, -1]]), 2)
        tensor([[[2.],
                 [0.]]])
    """
    flat = upcast(feature).flatten(2)
    found = F.one_hot(labels.flatten(1) + 1, classes + 1)[..., 1:].to(flat.dtype)
    with full_precision(flat):
        sums = found.transpose(1, 2) @ flat.transpose(1, 2)
    return sums / found.sum(1).clamp(min=1)[..., None]


def class_similarity(feature: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cosine of each position with the mean of its class in its sample, ``M(p) = cos(f(p), centre of y(p))``.

    Args:
        feature: (B, C, *space).
        labels: class of each position (B, *space), -1 where it does not count.
        classes: K.

    Returns:
        (B, positions), float32 for low-precision input; meaningless where a position does not count.

    Example:
        >>> import torch
        >>> class_similarity(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[0, 0]]), 1)
        tensor([[0.7071, 0.7071]])
    """
    flat = unit(upcast(feature).flatten(2))
    centres = unit(class_centres(feature, labels, classes), dim=2)
    with full_precision(flat):
        return (centres @ flat).gather(1, labels.flatten(1).clamp(min=0)[:, None]).squeeze(1)


def class_variation_loss(student: Tensor, teacher: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean over labelled positions of the squared difference of :func:`class_similarity`.

    Wang, Zhou, Jiang, Bai & Xu, Intra-class Feature Variation Distillation for Semantic Segmentation (ECCV 2020), eq. 1
    to 3.

    Args:
        student: (B, C_s, *space).
        teacher: (B, C_t, *space).
        labels: class of each position (B, *space), -1 where it does not count.
        classes: K.

    Returns:
        A scalar, float32 for low-precision input; zero where no position counts.

    Raises:
        KDBenchError: samples or positions of the three differ.

    Example:
        >>> import torch
        >>> labels = torch.tensor([[0, 0]])
        >>> class_variation_loss(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.ones(1, 1, 2), labels, 1)
        tensor(0.0858)
    """
    shapes = {(len(x), *x.shape[2:]) for x in (student, teacher)} | {tuple(labels.shape)}
    if len(shapes) > 1:
        raise KDBenchError(
            f"class_variation_loss: found a student {tuple(student.shape)}, a teacher {tuple(teacher.shape)} and "
            f"labels {tuple(labels.shape)}, expected (B, C, *space) twice and (B, *space)"
        )
    difference = class_similarity(student, labels, classes) - class_similarity(teacher, labels, classes)
    return weighted_mean(difference.square().flatten(), (labels >= 0).flatten())
